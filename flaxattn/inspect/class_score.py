"""The number of each image that its class activation map explains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxattn.errors import InputError, require_least, require_range, shown
from flaxattn.models.detection import Detections

Score = Callable[[Any], Array]  # of a model's outputs: (N,)


def class_score(outputs: Any, classes: Any = None) -> Score:
    """The score of a class, as a function of outputs like `outputs`.

    Of a classifier's logits (N, K) it is the class's logit; of a segmenter's (N, H, W, K), the sum
    of the class's logits over the pixels that `outputs` has as this class; of a detector's
    `Detections` the sum of the scores of what is found with this label.

    Args:
        outputs: a model's, of which the likeliest classes and the segmenter's pixels are taken.
        classes: an integer for all images or one for each (N,); None for each image's likeliest:
            the class with the highest logit, of the most pixels, or of the best detection.

    Raises InputError for other outputs, and for classes that are not there or not so many.
    """
    outputs = lax.stop_gradient(outputs)
    if isinstance(outputs, Detections):
        labels = _chosen(classes, outputs.labels[:, 0], 1, None)[:, None]
        return lambda found: jnp.sum(jnp.where(found.labels == labels, found.scores, 0), axis=1)
    axes = getattr(outputs, "ndim", 0)
    if axes not in (2, 4):
        raise InputError(
            f"outputs of type {type(outputs).__name__} with {axes} axes have no score known here: "
            f"pass score=..., a function that makes (N,) of them."
        )
    count = outputs.shape[-1]
    best = jnp.argmax(outputs, axis=-1)
    if axes == 2:
        chosen = _chosen(classes, best, 0, count - 1)[:, None]
        return lambda logits: jnp.take_along_axis(logits, chosen, axis=1)[:, 0]
    pixels = jnp.sum(jax.nn.one_hot(best, count), axis=(1, 2))
    chosen = _chosen(classes, jnp.argmax(pixels, axis=-1), 0, count - 1)[:, None, None]
    there = best == chosen

    def summed(logits: Array) -> Array:
        own = jnp.take_along_axis(logits, chosen[..., None], axis=3)[..., 0]
        return jnp.sum(jnp.where(there, own, 0), axis=(1, 2))

    return summed


def _chosen(classes: Any, likeliest: Array, first: int, last: int | None) -> Array:
    """A class for each image."""
    if classes is None:
        return likeliest
    images, shape = len(likeliest), np.shape(classes)
    if shape not in ((), (images,)):
        raise InputError(
            f"classes of shape {shape} for {images} images: give one integer, or one for each."
        )
    if not isinstance(classes, jax.core.Tracer):  # whose values are not known yet
        given = np.asarray(classes)
        if given.dtype.kind not in "iu":
            raise InputError(f"classes={shown(classes)} must be integers, or None.")
        for one in given.ravel().tolist():
            if last is None:
                require_least("classes", one, first)
            else:
                require_range("classes", one, first, last)
    return jnp.broadcast_to(jnp.asarray(classes, jnp.int32), (images,))
