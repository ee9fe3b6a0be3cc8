"""How a residual network halves its maps: parameter-free pools, and where they stand.

Pools return x's dtype; their sums are in float32 or wider.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.layers.precision import at_least_float32

Pool = Callable[[Array, int], Array]


def max_pool(x: Array, strides: int = 2) -> Array:
    """Maximum of 3x3 windows: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), C)."""
    return nn.max_pool(x, (3, 3), (strides, strides), ((1, 1), (1, 1)))


def average_pool(x: Array, strides: int = 2) -> Array:
    """Mean of windows side by side; rows and columns that fill none are left out.

    (N, H, W, C) -> (N, floor(H / strides), floor(W / strides), C).
    """
    return _mean(x, strides, strides, (0, 0))


def whole_average_pool(x: Array, strides: int = 2) -> Array:
    """Mean of windows side by side, the last of which may reach beyond the map.

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), C). Two by two: a repeated edge then
    leaves the mean of what is in the map.
    """
    height, width = (-size % strides for size in x.shape[1:3])
    return average_pool(jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0)), "edge"), strides)


def dense_average_pool(x: Array) -> Array:
    """Mean of all 2x2 windows, also of those that begin in the last row or column.

    (N, H, W, C) -> (N, H, W, C). Zeros beyond the map count.
    """
    return _mean(x, 2, 1, (0, 1))


def overlapping_average_pool(x: Array, strides: int = 2) -> Array:
    """Mean of 3x3 windows, in which zeros beyond the map count; x itself for strides of 1.

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), C).
    """
    return x if strides == 1 else _mean(x, 3, strides, (1, 1))


def blur_pool(x: Array, strides: int = 2) -> Array:
    """A quarter of 1, 2, 1 along either axis, the map reflected at its edges.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, arXiv:1904.11486.

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), C). A single row or column is its own
    reflection, where torch raises an error.
    """
    wide = x.astype(at_least_float32(x.dtype))
    y = jnp.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    y = (y[:, :-2:strides] + 2 * y[:, 1:-1:strides] + y[:, 2::strides]) / 4
    y = (y[:, :, :-2:strides] + 2 * y[:, :, 1:-1:strides] + y[:, :, 2::strides]) / 4
    return y.astype(x.dtype)


def _mean(x: Array, size: int, strides: int, padding: tuple[int, int]) -> Array:
    wide = x.astype(at_least_float32(x.dtype))
    total = nn.pool(wide, 0.0, lax.add, (size, size), (strides, strides), (padding, padding))
    return (total / size**2).astype(x.dtype)


def _blurred_max_pool(x: Array, strides: int = 2) -> Array:
    return blur_pool(max_pool(x, 1), strides)


class Downsampling(NamedTuple):
    """What stands in for strides.

    Fields:
        before, after: a block's middle convolution, which then has no strides: a pool, or None.
        stem: the pool after the stem's convolution.
    """

    before: Pool | None = None
    after: Pool | None = None
    stem: Pool = max_pool


DOWNSAMPLING = {
    "strides": Downsampling(),
    "average": Downsampling(after=average_pool, stem=average_pool),
    "blur": Downsampling(after=blur_pool, stem=_blurred_max_pool),
    "average_3x3": Downsampling(after=overlapping_average_pool),
    "average_3x3_first": Downsampling(before=overlapping_average_pool),
}
