"""Convolutions as a CPU computes them fastest; the same function and gradients as XLA's own.

XLA's CPU backend runs dense convolutions well, but one with groups up to five hundred times slower
than it could. Each function here takes x (N, *spatial, C) and the kernel
(*kernel_size, C / groups, features) as `lax.conv_general_dilated` does, with equal padding on both
sides, and is differentiable in both modes and to any order. benchmarks/ measures them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from flaxattn.layers.precision import at_least_float32

# Channels that are convolved densely at once, though only those of one group belong together. Fewer
# would make the matrices small, more would multiply too many zeros.
BLOCK_FEATURES = 32
# Those of an 11x11 depthwise kernel: each is a term of the program, and thousands are too many.
MOST_TAPS = 121
# Each block of groups is a convolution of the program.
MOST_BLOCKS = 1024


class Geometry(NamedTuple):
    """Strides, padding and dilation, one number for each spatial axis, and the groups."""

    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


def native(x: Array, kernel: Array, geometry: Geometry, precision: lax.PrecisionLike) -> Array:
    """XLA's own convolution."""
    axes = "DHW"[-len(geometry.strides) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.strides,
        padding=[(p, p) for p in geometry.padding],
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=geometry.groups,
        precision=precision,
    )


def formulation(
    x: Array, kernel: Array, geometry: Geometry
) -> Callable[[Array, Array, Geometry, lax.PrecisionLike], Array] | None:
    """The function that convolves these two fastest, or None where it is `native`."""
    if geometry.groups == 1:
        is_pointwise = kernel.shape[:-2] == (1,) * (x.ndim - 2) and not any(geometry.padding)
        return pointwise if is_pointwise else None
    if geometry.groups != x.shape[-1] or geometry.groups != kernel.shape[-1]:
        blocks = geometry.groups // _merged(geometry.groups, kernel.shape[-2])
        return grouped if blocks <= MOST_BLOCKS else None
    return depthwise if math.prod(kernel.shape[:-2]) <= MOST_TAPS else None


def _merged(groups: int, channels: int) -> int:
    """How many groups of so many channels are one block."""
    return max(n for n in range(1, max(BLOCK_FEATURES // channels, 1) + 1) if groups % n == 0)


def pointwise(x: Array, kernel: Array, geometry: Geometry, precision: lax.PrecisionLike) -> Array:
    """A 1x1 convolution as a matrix product."""
    x = x[(slice(None), *(slice(None, None, step) for step in geometry.strides))]
    matrix = kernel.reshape(kernel.shape[-2:])
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)


def grouped(x: Array, kernel: Array, geometry: Geometry, precision: lax.PrecisionLike) -> Array:
    """Groups merged into blocks of BLOCK_FEATURES channels, and a dense convolution for each.

    The kernel of a block is zero between channels of different groups.
    """
    groups = geometry.groups
    channels, features = kernel.shape[-2], kernel.shape[-1] // groups
    merged = _merged(groups, channels)
    size = kernel.shape[:-2]
    kernel = kernel.reshape(*size, channels, groups // merged, merged, features)
    blocks = jnp.einsum("...cbgf,gh->b...hcgf", kernel, jnp.eye(merged, dtype=kernel.dtype))
    blocks = blocks.reshape(-1, *size, merged * channels, merged * features)
    dense = geometry._replace(groups=1)
    parts = jnp.split(x, len(blocks), axis=-1)
    return jnp.concatenate(
        [native(part, block, dense, precision) for part, block in zip(parts, blocks, strict=True)],
        axis=-1,
    )


def depthwise(x: Array, kernel: Array, geometry: Geometry, precision: lax.PrecisionLike) -> Array:
    """A convolution of each channel by itself, as one multiply-add of the shifted map per tap."""
    del precision  # nothing is multiplied in less than x's own
    wide = at_least_float32(x.dtype)
    size, ones = kernel.shape[:-2], (1,) * (x.ndim - 1)
    taps = kernel.reshape(*size, *ones, -1).astype(wide)
    return _depthwise(x.astype(wide), taps, geometry).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _depthwise(x: Array, taps: Array, geometry: Geometry) -> Array:
    return _shifted_sum(_pad(x, geometry), taps, geometry)


@_depthwise.defjvp
def _depthwise_jvp(
    geometry: Geometry, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, taps), (x_moved, taps_moved) = primals, tangents
    y = _depthwise(x, taps, geometry)
    by_row = _shifted_sum_by_row(_pad(x, geometry), taps_moved, geometry)
    return y, _depthwise(x_moved, taps, geometry) + by_row


def _shifted_sum(x: Array, taps: Array, geometry: Geometry) -> Array:
    """sum_t taps_t * x shifted by t, of a padded x."""
    y = jnp.zeros((), x.dtype)
    for tap, window in _windows(x.shape[1:-1], taps.shape[: x.ndim - 2], geometry):
        y = y + x[(slice(None), *window)] * taps[tap]
    return y


def _shifted_sum_by_row(x: Array, taps: Array, geometry: Geometry) -> Array:
    """The same, one row of the output after the other.

    Only its transpose is computed, the taps' gradient: row by row, what is multiplied and summed
    stays in the cache. Each sample has a sum of its own, so that samples on several devices wait
    for each other once.
    """
    stride, dilation = geometry.strides[0], geometry.dilation[0]
    size, *others = taps.shape[: x.ndim - 2]
    inner = Geometry(geometry.strides[1:], geometry.padding[1:], geometry.dilation[1:])
    windows = list(_windows(x.shape[2:-1], others, inner))
    of_sample = {
        tap: jnp.broadcast_to(taps[tap][0], (x.shape[0], *taps.shape[x.ndim :]))
        for tap in itertools.product(range(size), *map(range, others))
    }

    @functools.partial(jax.checkpoint, prevent_cse=False)  # else every shifted map would be kept
    def row(index: Array, of_sample: dict[tuple[int, ...], Array]) -> Array:
        y = jnp.zeros((), x.dtype)
        for first in range(size):
            source = lax.dynamic_index_in_dim(
                x, index * stride + first * dilation, 1, keepdims=False
            )
            for tap, window in windows:
                y = y + source[(slice(None), *window)] * of_sample[first, *tap]
        return y

    rows = _output_size(x.shape[1], size, stride, dilation)
    y = lax.map(lambda index: row(index, of_sample), jnp.arange(rows))
    return jnp.moveaxis(y, 0, 1)


def _windows(sizes: Sequence[int], kernel_size: Sequence[int], geometry: Geometry) -> Any:
    """For each tap its index, and the part of a padded map that it is multiplied with."""
    ranges = []
    for size, taps, step, dilation in zip(
        sizes, kernel_size, geometry.strides, geometry.dilation, strict=True
    ):
        length = (_output_size(size, taps, step, dilation) - 1) * step + 1
        ranges.append([slice(t * dilation, t * dilation + length, step) for t in range(taps)])
    for tap in itertools.product(*map(range, kernel_size)):
        yield tap, tuple(axis[t] for axis, t in zip(ranges, tap, strict=True))


def _output_size(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """How long the output is along a padded axis."""
    return (size - (kernel_size - 1) * dilation - 1) // stride + 1


def _pad(x: Array, geometry: Geometry) -> Array:
    return jnp.pad(x, ((0, 0), *((p, p) for p in geometry.padding), (0, 0)))
