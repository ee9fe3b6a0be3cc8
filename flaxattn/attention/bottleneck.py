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
