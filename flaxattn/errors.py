"""One kind of error for bad input: a single sentence with the value, the legal ones, what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the caller gave cannot work; the message alone says why and what to do instead."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is in no table: the nearest names first, else all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "there is none like it."
    return InputError(f"unknown {kind} {name!r}: {hint} Known: {', '.join(names)}.")
