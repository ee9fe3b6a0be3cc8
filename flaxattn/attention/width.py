"""The hidden width of a bottleneck."""

from flaxattn.errors import InputError


def reduced_features(features: int, reduction: int, *, divisor: int | None = None) -> int:
    """Channels left of `features` after a reduction.

    Rounded down, as papers and articles do, or, with `divisor`, to the nearest multiple of it and
    at least one multiple, as timm's `make_divisible(features / reduction, divisor, round_limit=0)`.

    Raises InputError if that leaves no channel.
    """
    if reduction < 1:
        raise InputError(f"reduction={reduction} is below one: use 1 to {features}.")
    if divisor is not None:
        return max(divisor, int(features / reduction + divisor / 2) // divisor * divisor)
    if features < reduction:
        raise InputError(
            f"reduction={reduction} leaves no channel of {features}: use a reduction of at most "
            f"{features}."
        )
    return features // reduction
