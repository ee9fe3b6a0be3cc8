"""The boxes that a region proposal network starts from."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike


def anchors(
    maps: Sequence[Sequence[int]],
    canvas: Sequence[int],
    *,
    sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    dtype: DTypeLike,
) -> list[Array]:
    """Anchors of each map, (H * W * A, 4): row by row, then by aspect ratio, then by size.

    Args:
        maps: the heights and widths of the pyramid's maps.
        canvas: height and width of the images.
        sizes: for each map, the square roots of its anchors' areas in pixels.
        aspect_ratios: heights over widths.

    As in torchvision, steps are canvas // map along each axis: 61 pixels, and not 64, from row to
    row of a map of 13 rows on a canvas of 800. Anchors are not clipped.
    """
    levels = zip(maps, sizes, strict=True)
    return [_level(shape, canvas, _cell(own, aspect_ratios), dtype) for shape, own in levels]


def _cell(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """The anchors around a position, (A, 4), in float32 and rounded, as torchvision has them."""
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    own = np.asarray(sizes, np.float32)[None, :]
    h, w = (heights * own).ravel(), (1 / heights * own).ravel()
    return np.round(np.stack([-w, -h, w, h], axis=1) / 2)


def _level(
    shape: Sequence[int], canvas: Sequence[int], cell: np.ndarray, dtype: DTypeLike
) -> Array:
    (height, width), steps = shape, [c // s for c, s in zip(canvas, shape, strict=True)]
    grid = (height, width, 1)
    y, x = (lax.broadcasted_iota(jnp.int32, grid, axis) * steps[axis] for axis in (0, 1))
    shifts = jnp.concatenate([x, y, x, y], axis=-1).astype(dtype)
    boxes = shifts[:, :, None, :] + jnp.asarray(cell, dtype)[None, None]
    return boxes.reshape(-1, 4)
