"""Boxes (x1, y1, x2, y2) in pixels, on the last axis."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

# Deltas of sizes are cut here before they go through exp: 1000 / 16 times an anchor's side.
_LARGEST_DELTA = math.log(1000 / 16)


def area(boxes: Array) -> Array:
    """(..., 4) -> (...)."""
    x1, y1, x2, y2 = _parts(boxes)
    return (x2 - x1) * (y2 - y1)


def iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of each pair: (M, 4), (N, 4) -> (M, N); 0 where both are empty."""
    one, other = boxes[:, None, :], others[None, :, :]
    corner = jnp.maximum(one[..., :2], other[..., :2])
    sides = jnp.maximum(jnp.minimum(one[..., 2:], other[..., 2:]) - corner, 0)
    both = sides[..., 0] * sides[..., 1]
    union = area(one) + area(other) - both
    return jnp.where(union > 0, both / _or_one(union), 0)


def clip(boxes: Array, size: Array) -> Array:
    """(..., 4) cut at the edges of an image of `size`, (2,): height and width."""
    height, width = size.astype(boxes.dtype)
    limits = jnp.stack([width, height, width, height])
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def has_sides(boxes: Array, least: float) -> Array:
    """Whether both sides are `least` pixels or longer: (..., 4) -> (...)."""
    x1, y1, x2, y2 = _parts(boxes)
    return (x2 - x1 >= least) & (y2 - y1 >= least)


def encode(boxes: Array, anchors: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Deltas from anchors to boxes, both (..., 4): centres in units of a side, logs of sides.

    `weights` multiply the deltas (dx, dy, dw, dh). Where a side is 0, as padding's are, the deltas
    are finite and mean nothing.
    """
    x, y, width, height = _centred(boxes)
    from_x, from_y, from_width, from_height = _centred(anchors)
    from_width, from_height = _or_one(from_width), _or_one(from_height)
    deltas = (
        (x - from_x) / from_width,
        (y - from_y) / from_height,
        jnp.log(_or_one(width) / from_width),
        jnp.log(_or_one(height) / from_height),
    )
    return jnp.stack([w * delta for w, delta in zip(weights, deltas, strict=True)], axis=-1)


def decode(deltas: Array, anchors: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """The boxes (..., 4) that `encode` took to these deltas; sides grow 62.5 times at most."""
    x, y, width, height = _centred(anchors)
    dx, dy, dw, dh = (d / w for d, w in zip(_parts(deltas), weights, strict=True))
    x, y = dx * width + x, dy * height + y
    half_width = 0.5 * (jnp.exp(jnp.minimum(dw, _LARGEST_DELTA)) * width)
    half_height = 0.5 * (jnp.exp(jnp.minimum(dh, _LARGEST_DELTA)) * height)
    corners = (x - half_width, y - half_height, x + half_width, y + half_height)
    return jnp.stack(corners, axis=-1)


def _parts(boxes: Array) -> tuple[Array, ...]:
    return tuple(boxes[..., i] for i in range(4))


def _centred(boxes: Array) -> tuple[Array, Array, Array, Array]:
    """Centre x, centre y, width, height."""
    x1, y1, x2, y2 = _parts(boxes)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def _or_one(length: Array) -> Array:
    """1 where a length is not positive, so that neither a quotient nor its gradient is NaN."""
    return jnp.where(length > 0, length, 1)
