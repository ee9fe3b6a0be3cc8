"""What a detector learns: objects, which boxes match them, a sample of those, and losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from flaxattn.models.detection.boxes import iou

# (key, (count,)) -> numbers; of the boxes that may be chosen those with the largest are.
Draw = Callable[[Array, tuple[int, ...]], Array]


class Targets(NamedTuple):
    """The objects in a batch of images, padded to one number.

    Fields:
        boxes: (N, G, 4), x1, y1, x2, y2 in pixels of the canvas.
        labels: (N, G), integers from 1; 0 is the background.
        valid: (N, G), bool: which are objects and which padding.
        image_id: (N,), integers; the samples of an image follow from the step's key and this alone.
    """

    boxes: Array
    labels: Array
    valid: Array
    image_id: Array


class Ratio(NamedTuple):
    """A mean in two parts, for examples on several devices: add up each, then divide."""

    numerator: Array
    denominator: Array


class Matches(NamedTuple):
    """Of each box (K,): the object it is nearest to, whether it is one, whether it is background.

    Boxes that are neither are left out of training.
    """

    nearest: Array
    positive: Array
    negative: Array


class Samples(NamedTuple):
    """Chosen boxes: their indices (S,), which of them are positive, and which are there at all."""

    chosen: Array
    positive: Array
    valid: Array


def match(
    boxes: Array,
    objects: Array,
    valid: Array,
    *,
    foreground: float,
    background: float,
    low_quality: bool = False,
) -> Matches:
    """Matches boxes (K, 4) with objects (G, 4) of one image, those that are `valid`, (G,).

    Args:
        foreground: positive boxes have this IoU with an object, or more.
        background: negative ones have less than this with every object.
        low_quality: whether boxes whose IoU with an object no other exceeds are positive too. They
            go to the object that they overlap most, which may be another.

    Deviation: of an object that no box touches, torchvision takes for such boxes all that do not
    touch it.
    """
    # Compared with its own maximum below, for which it must not be computed twice.
    overlaps = lax.optimization_barrier(
        jnp.where(valid[:, None], iou(objects, boxes), jnp.asarray(-1, boxes.dtype))
    )
    best = jnp.max(overlaps, axis=0)
    positive, negative = best >= foreground, best < background
    if low_quality:
        largest = jnp.max(overlaps, axis=1, keepdims=True)
        among_best = jnp.any((overlaps == largest) & (largest > 0), axis=0)
        positive, negative = positive | among_best, negative & ~among_best
    return Matches(jnp.argmax(overlaps, axis=0), positive, negative)


def sample(
    key: Array, positive: Array, negative: Array, *, count: int, positive_share: float, draw: Draw
) -> Samples:
    """`count` of K boxes at random: positive ones up to their share, and negative ones.

    positive, negative: (K,), bool. There are fewer samples where there are not enough boxes.
    """
    numbers = draw(key, positive.shape)
    most = int(count * positive_share)

    def order(among: Array, size: int) -> Array:
        lowest = jnp.asarray(-jnp.inf, numbers.dtype)
        return lax.top_k(jnp.where(among, numbers, lowest), min(size, len(among)))[1]

    of_positive, of_negative = order(positive, most), order(negative, count)
    positives = jnp.minimum(jnp.sum(positive), most)
    negatives = jnp.minimum(jnp.sum(negative), count - positives)
    slot = jnp.arange(count)
    is_positive = slot < positives
    index = jnp.where(
        is_positive,
        of_positive[jnp.minimum(slot, len(of_positive) - 1)],
        of_negative[jnp.clip(slot - positives, 0, len(of_negative) - 1)],
    )
    return Samples(index, is_positive, slot < positives + negatives)


def smooth_l1(x: Array, y: Array) -> Array:
    """The sum over the last axis of 0.5 d^2 / beta up to |d| = beta, |d| - beta / 2 above it.

    beta is 1/9.
    """
    beta = 1 / 9
    d = jnp.abs(x - y)
    return jnp.sum(jnp.where(d < beta, 0.5 * d**2 / beta, d - 0.5 * beta), axis=-1)


def masked_sum(values: Array, mask: Array) -> Array:
    """Where the mask is off a value may be anything, NaN too."""
    return jnp.sum(jnp.where(mask, values, 0))
