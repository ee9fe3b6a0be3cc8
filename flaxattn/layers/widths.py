"""Numbers of channels: a reduced width, and one rounded to a multiple."""

from flaxattn.errors import InputError, require_range


def reduced_features(
    features: int,
    reduction: int,
    *,
    divisor: int | None = None,
    at_least: int = 0,
    round_limit: float = 0.0,
) -> int:
    """Channels left of `features` after a reduction.

    Rounded down, as papers and articles do, or by `make_divisible` where there is a `divisor`.
    Never fewer than `at_least`.

    Raises InputError if that leaves no channel, for a reduction or divisor below one, for an
    `at_least` below zero, and for a `round_limit` outside 0 to 1.
    """
    require_range("round_limit", round_limit, 0, 1)
    if at_least < 0:
        raise InputError(f"at least {at_least} channels says nothing: use 0 or more.")
    if reduction < 1:
        raise InputError(f"reduction={reduction} is below one: use 1 to {features}.")
    if divisor is not None:
        if divisor < 1:
            raise InputError(f"divisor={divisor} is below one: use 1 or more, or None.")
        return make_divisible(
            features / reduction, divisor, at_least=at_least, round_limit=round_limit
        )
    if features < reduction and at_least < 1:
        raise InputError(
            f"reduction={reduction} leaves no channel of {features}: use a reduction of at most "
            f"{features}."
        )
    return max(features // reduction, at_least)


def make_divisible(
    width: float, divisor: int, *, at_least: int = 0, round_limit: float = 0.9
) -> int:
    """The multiple of `divisor` nearest to `width`, as timm and the MobileNets round channels.

    At least one multiple and `at_least`. It is one multiple more where the nearest is less than
    `round_limit` of `width`.
    """
    rounded = max(divisor, at_least, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * width else rounded
