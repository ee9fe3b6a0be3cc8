"""Changing the size of maps as torch does: nearest, bilinear, adaptive average."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxattn.layers.precision import at_least_float32


def resize_nearest(x: Array, size: Sequence[int]) -> Array:
    """(N, H, W, C) -> (N, *size, C); position i of the output is position floor(i * H / H') of x.

    As torch's interpolate(mode="nearest"). `jax.image.resize` rounds half a pixel further, which is
    torch's "nearest-exact"; the two agree where H' is a multiple of H.
    """
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if new % old == 0:  # a broadcast, whose gradient is a sum where a gather's is a scatter
            x = jnp.repeat(x, new // old, axis=axis)
        else:
            x = jnp.take(x, np.arange(new) * old // new, axis=axis)
    return x


def resize_bilinear(x: Array, size: Sequence[int], *, align_corners: bool = False) -> Array:
    """(N, H, W, C) -> (N, *size, C) by linear interpolation along each axis, without antialiasing.

    With `align_corners` the first and the last pixels of both grids coincide, so i reads
    i * (H - 1) / (H' - 1). Without, their outer edges do, so i reads (i + 1/2) * H / H' - 1/2.
    As torch's interpolate(mode="bilinear"). Computed in float32 or wider, returned in x's dtype.
    """

    def matrix(old: int, new: int) -> np.ndarray:
        if align_corners:
            source = np.arange(new) * ((old - 1) / max(new - 1, 1))
        else:
            source = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(old)))

    return _resample(x, size, matrix)


def adaptive_average_pool(x: Array, size: Sequence[int]) -> Array:
    """(N, H, W, C) -> (N, *size, C): means of the bins [floor(i H / H'), ceil((i + 1) H / H')).

    As torch's AdaptiveAvgPool2d; bins overlap where H' does not divide H. Computed in float32 or
    wider, returned in x's dtype.
    """

    return _resample(x, size, bin_averages)


def bin_averages(old: int, new: int) -> np.ndarray:
    """The matrix (new, old) that takes the means of `new` bins of an axis of `old` positions."""
    bins = np.zeros((new, old))
    for i in range(new):
        start, stop = i * old // new, math.ceil((i + 1) * old / new)
        bins[i, start:stop] = 1 / (stop - start)
    return bins


def _resample(x: Array, size: Sequence[int], matrix) -> Array:
    """Multiplies each spatial axis with its matrix (new, old)."""
    wide = at_least_float32(x.dtype)
    rows, columns = (
        jnp.asarray(matrix(old, new), wide) for old, new in zip(x.shape[1:3], size, strict=True)
    )
    y = jnp.einsum(
        "ih,jw,nhwc->nijc", rows, columns, x.astype(wide), precision=lax.Precision.HIGHEST
    )
    return y.astype(x.dtype)
