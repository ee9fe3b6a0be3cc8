"""One kind of error for bad input: a single sentence with the value, the legal ones, what to do."""

import difflib
from collections.abc import Iterable

_FEW = 20  # names that a sentence can list beside its advice
_LONG = 100  # characters of a value in a sentence
_LONGEST_LIST = 400  # characters of all names together


class InputError(ValueError):
    """What the caller gave cannot work; the message alone says why and what to do instead."""


def unknown(kind: str, name: object, known: Iterable[str], *, listed: str = "") -> InputError:
    """The error for a name that is not among the known ones.

    It lists the nearest names, first those that begin with it, without regard to upper case; and
    all of them where they are few or none is near. Where that would be too long, it says how many
    there are, and that the command `listed` shows them.
    """
    names, given = sorted(known), str(name).lower()
    begun = sorted((n for n in names if given and n.lower().startswith(given)), key=len)
    # Two of three letters in common are no likeness.
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5 if len(given) > 3 else 0.6)
    nearest = list(dict.fromkeys([*begun, *close]))[:3]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "there is none like it."
    if not nearest or len(names) <= _FEW:
        hint += f" {_all_of(names, listed)}"
    return InputError(f"unknown {kind} {shown(name)}: {hint}")


def _all_of(names: list[str], listed: str) -> str:
    together = ", ".join(names)
    if len(together) <= _LONGEST_LIST:
        return f"Known: {together}."
    return f"{len(names)} are known" + (f": see `{listed}`." if listed else ".")


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is too long for a sentence."""
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def require_least(field: str, value: float, least: int) -> None:
    """InputError unless `value` is `least` or more."""
    if value < least:
        raise InputError(f"{field}={value} is below {least}: use {least} or more.")


def require_range(field: str, value: float, least: float, most: float) -> None:
    """InputError unless `value` is `least` to `most`."""
    if not least <= value <= most:
        raise InputError(f"{field}={shown(value)} must be {least} to {most}.")


def require_rate(field: str, rate: float) -> None:
    """InputError unless `rate` is 0 or more, and below 1."""
    if not 0 <= rate < 1:
        raise InputError(f"{field}={rate} must be 0 or more, and below 1.")
