"""The bottleneck of two layers that most channel gates are made of, and its hidden width."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax

from flaxattn.conv import Conv
from flaxattn.errors import InputError


def bottleneck(
    z: Array,
    hidden: int,
    features: int,
    *,
    names: tuple[str, str] = ("fc1", "fc2"),
    activation: Callable[[Array], Array] = jax.nn.relu,
    **fields: Any,
) -> Array:
    """W2 activation(W1 z) of vectors: (N, ..., C) -> (N, ..., features).

    Two 1x1 convolutions, submodules of the calling one: kernels (1, 1, C, hidden) and
    (1, 1, hidden, features). They multiply in full float32 on every platform, for vectors are few.

    Args:
        z: (N, C), or several vectors a sample.
        hidden, features: width of the first and of the second layer.
        names: of the two layers.
        activation: between them.
        **fields: of `Conv`, for both.
    """

    def fc(width: int, name: str) -> Conv:
        return Conv(width, precision=lax.Precision.HIGHEST, name=name, **fields)

    maps = z.reshape(z.shape[0], -1, 1, z.shape[-1])
    maps = fc(features, names[1])(activation(fc(hidden, names[0])(maps)))
    return maps.reshape(*z.shape[:-1], features)


def reduced_features(
    features: int,
    reduction: int,
    *,
    divisor: int | None = None,
    at_least: int = 0,
    round_limit: float = 0.0,
) -> int:
    """Channels left of `features` after a reduction.

    Rounded down, as papers and articles do, or, with `divisor`, by `make_divisible`. In either case
    `at_least` so many.

    Raises InputError if that leaves no channel, and for a reduction or divisor below one.
    """
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

    At least one multiple and `at_least`, and one multiple more where what is left would be less
    than `round_limit` of `width`.
    """
    rounded = max(divisor, at_least, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * width else rounded
