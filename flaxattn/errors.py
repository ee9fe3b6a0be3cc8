"""One kind of error for bad input: a single sentence with the value, the legal ones, what to do."""

import difflib
from collections.abc import Iterable
from numbers import Integral

_FEW = 20  # names that a sentence can list beside its advice


class InputError(ValueError):
    """What the caller gave cannot work; the message alone says why and what to do instead."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones.

    It lists the nearest names, first those that begin with it, without regard to upper case; and
    all of them where they are few or none is near.
    """
    names, given = sorted(known), str(name).lower()
    begun = sorted((n for n in names if given and n.lower().startswith(given)), key=len)
    # Two of three letters in common are no likeness.
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5 if len(given) > 3 else 0.6)
    nearest = list(dict.fromkeys([*begun, *close]))[:3]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "there is none like it."
    if not nearest or len(names) <= _FEW:
        hint += f" Known: {', '.join(names)}."
    return InputError(f"unknown {kind} {name!r}: {hint}")


def require_count(field: str, count: int, least: int) -> None:
    """InputError unless `count` is an integer of `least` or more."""
    if not isinstance(count, Integral):
        raise InputError(f"{field}={count!r} must be an integer: use {least} or more.")
    if count < least:
        raise InputError(f"{field}={count} is below {least}: use {least} or more.")


def require_rate(field: str, rate: float) -> None:
    """InputError unless `rate` is 0 or more, and below 1."""
    if not 0 <= rate < 1:
        raise InputError(f"{field}={rate} must be 0 or more, and below 1.")
