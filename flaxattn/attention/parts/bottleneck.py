"""The bottleneck of two layers that most channel gates are made of."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax

from flaxattn.layers.conv import Conv


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
