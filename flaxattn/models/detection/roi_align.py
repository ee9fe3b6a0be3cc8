"""ROIAlign over the levels of a pyramid."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxattn.errors import unknown
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.sharded import on_each_device
from flaxattn.models.detection.boxes import area

# A box of this side is read from the level with strides 2 ** _CANONICAL_LEVEL.
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
_SAMPLES = 2  # of a bin, along each axis
_BOXES_AT_ONCE = 64  # of "matmul", whose rows of whole maps are (boxes, output_size, W, C)


def roi_align(
    maps: Sequence[Array],
    boxes: Array,
    strides: Sequence[int],
    *,
    output_size: int = 7,
    formulation: str = "auto",
) -> Array:
    """Each box's part of the pyramid as a small map, by bilinear interpolation.

    He, Gkioxari, Dollar, Girshick, "Mask R-CNN", ICCV 2017, arXiv:1703.06870; the levels by Eq. 1
    of Lin et al., arXiv:1612.03144. As torchvision's MultiScaleRoIAlign: 2 x 2 samples a bin,
    aligned=False, boxes widened to one position of their map; a sample more than one position
    outside counts as 0. Samples are weighted in float32 or wider. No gradient goes to the boxes.

    Args:
        maps: the levels, (N, H, W, C) each, the finest first.
        boxes: (N, R, 4) in pixels.
        strides: pixels to a position of each level, powers of 2. Where two levels have the same,
            as in torchvision's MobileNets, all boxes are read from the first.
        output_size: bins along each axis.
        formulation: "gather", which reads four positions for each sample; "matmul", which
            multiplies whole maps by two interpolation matrices for each box, without gather and
            scatter; or "auto": "matmul" on a TPU, "gather" elsewhere. They compute the same.

    Returns (N, R, output_size, output_size, C) in the maps' dtype. Raises InputError for an unknown
    formulation.
    """
    if formulation not in (*_FORMULATIONS, "auto"):
        raise unknown("formulation", formulation, (*_FORMULATIONS, "auto"))
    first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    count = last - first + 1
    maps, strides = tuple(maps[:count]), tuple(strides[:count])
    boxes = lax.stop_gradient(boxes)
    levels = _levels(boxes, first, last)

    def by(name: str) -> Callable[..., Array]:
        return jax.vmap(
            functools.partial(_FORMULATIONS[name], strides=strides, output_size=output_size)
        )

    def pool(*given: Any) -> Array:
        if formulation == "auto":
            return lax.platform_dependent(*given, tpu=by("matmul"), default=by("gather"))
        return by(formulation)(*given)

    return on_each_device(pool)(maps, boxes, levels).astype(maps[0].dtype)


def _levels(boxes: Array, first: int, last: int) -> Array:
    """Which of the maps each box is read from; an empty box from the finest."""
    areas = area(boxes)
    sides = jnp.sqrt(jnp.where(areas > 0, areas, 1))
    level = jnp.floor(_CANONICAL_LEVEL + jnp.log2(sides / _CANONICAL_SIDE) + 1e-6)
    return jnp.clip(level, first, last).astype(jnp.int32) - first


def _samples(
    start: Array, stop: Array, length: Array, output_size: int
) -> list[tuple[Array, Array]]:
    """The lower and the upper neighbour of each sample along an axis, and their weights.

    start, stop: (R,) of the boxes, in positions of their maps; length: (R,) of these maps. Each
    result is (R, output_size * _SAMPLES).
    """
    bins = jnp.maximum(stop - start, 1) / output_size
    steps = np.arange(output_size * _SAMPLES)
    corner = jnp.asarray(steps // _SAMPLES, bins.dtype)[None]
    inner = jnp.asarray((steps % _SAMPLES + 0.5) / _SAMPLES, bins.dtype)[None]
    position = start[:, None] + corner * bins[:, None] + inner * bins[:, None]

    end = length.astype(position.dtype)[:, None]
    inside = (position >= -1) & (position <= end)
    position = jnp.clip(position, 0, end - 1)
    lower = jnp.floor(position)
    upper = jnp.minimum(lower + 1, end - 1)
    part = position - lower
    return [
        (index.astype(jnp.int32), jnp.where(inside, weight, 0))
        for index, weight in ((lower, 1 - part), (upper, part))
    ]


def _gather(
    maps: Sequence[Array],
    boxes: Array,
    levels: Array,
    *,
    strides: Sequence[int],
    output_size: int,
) -> Array:
    """(H, W, C) maps and (R, 4) boxes of one image -> (R, output_size, output_size, C)."""
    shapes = np.array([x.shape[:2] for x in maps], np.int32)
    offsets = np.array([0, *np.cumsum(shapes.prod(axis=1))[:-1]], np.int32)
    height, width, offset = (
        jnp.asarray(table)[levels] for table in (shapes[:, 0], shapes[:, 1], offsets)
    )
    scaled = boxes * jnp.asarray([1 / stride for stride in strides], boxes.dtype)[levels][:, None]
    rows = _samples(scaled[:, 1], scaled[:, 3], height, output_size)
    columns = _samples(scaled[:, 0], scaled[:, 2], width, output_size)
    wide = at_least_float32(maps[0].dtype)
    positions = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in maps])
    total = jnp.zeros((), wide)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = (offset[:, None] + row * width[:, None])[:, :, None] + column[:, None, :]
            weight = row_weight[:, :, None, None] * column_weight[:, None, :, None]
            found = positions.at[index].get(mode="clip")
            total = total + found.astype(wide) * weight.astype(wide)
    bins = (output_size, _SAMPLES)
    return jnp.mean(total.reshape(-1, *bins, *bins, total.shape[-1]), axis=(2, 4))


def _matmul(
    maps: Sequence[Array],
    boxes: Array,
    levels: Array,
    *,
    strides: Sequence[int],
    output_size: int,
) -> Array:
    """(H, W, C) maps and (R, 4) boxes of one image -> (R, output_size, output_size, C)."""
    wide = at_least_float32(maps[0].dtype)
    widened = [x.astype(wide) for x in maps]

    def pool(part: tuple[Array, Array]) -> Array:
        boxes, levels = part
        total = jnp.zeros((), wide)
        for level, (x, stride) in enumerate(zip(widened, strides, strict=True)):
            scaled = boxes / stride
            rows, columns = (
                _interpolation(scaled[:, axis], scaled[:, axis + 2], length, output_size)
                for axis, length in ((1, x.shape[0]), (0, x.shape[1]))
            )
            rows = jnp.where((levels == level)[:, None, None], rows, 0)
            for subscripts, matrix in (("hwc,rph->rpwc", rows), ("rpwc,rqw->rpqc", columns)):
                x = jnp.einsum(subscripts, x, matrix.astype(wide), precision=lax.Precision.HIGHEST)
            total = total + x
        return total

    size = max(n for n in range(1, _BOXES_AT_ONCE + 1) if len(boxes) % n == 0)
    parts = (boxes.reshape(-1, size, 4), levels.reshape(-1, size))
    return lax.map(pool, parts).reshape(-1, output_size, output_size, maps[0].shape[-1])


def _interpolation(start: Array, stop: Array, length: int, output_size: int) -> Array:
    """The matrices (R, output_size, length) that take an axis to the means of boxes' bins."""
    lengths = jnp.full(len(start), length, jnp.int32)
    positions = jnp.arange(length, dtype=jnp.int32)[None, None]
    lower, upper = (
        jnp.where(index[:, :, None] == positions, weight[:, :, None], 0)
        for index, weight in _samples(start, stop, lengths, output_size)
    )
    return jnp.mean((lower + upper).reshape(len(start), output_size, _SAMPLES, length), axis=2)


_FORMULATIONS: dict[str, Callable[..., Array]] = {"gather": _gather, "matmul": _matmul}
