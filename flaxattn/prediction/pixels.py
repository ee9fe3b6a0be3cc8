"""Which class each pixel of image files has."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from flaxattn.errors import InputError
from flaxattn.images.geometry import resize
from flaxattn.images.segmenter_preprocessing import SegmenterPreprocessing
from flaxattn.prediction.inputs import batches, explained, paths_of

_MOST_CLASSES = 256  # that uint8 can tell apart


def segment(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: str | Path | Iterable[str | Path],
    *,
    preprocessing: SegmenterPreprocessing,
) -> list[np.ndarray]:
    """The likeliest class of each pixel of each image file: uint8 (H, W), the file's own size.

        model, variables, preprocessing = flaxattn.from_pretrained("runs/segment")
        (classes,) = flaxattn.segment(
            model, variables, "cat.jpg", preprocessing=preprocessing
        )

    The classes are found at the size that the image is resized to; a pixel of the file has that of
    the nearest one.

    Args:
        model: returns logits (N, H, W, num_classes) for images (N, H, W, C), as those of
            `create_segmenter`.
        variables: its variables, such as `weights.load` returns.
        images: paths of image files that Pillow reads.
        preprocessing: the weights' own. With a larger `multiple`, images of many sizes need fewer
            programs to be compiled.

    Raises InputError with the path of a file that is not a complete image; for no images, more than
    256 classes, and a number of channels that is not the model's.
    """
    paths = paths_of(images)
    variables = jax.device_put(variables)
    maps: list[np.ndarray] = [np.empty((0, 0), np.uint8) for _ in paths]
    for indices, batch in batches(paths, preprocessing):
        with explained(model, variables, preprocessing):
            found = jax.device_get(_classes(model, variables, batch.image))
        for row, index in enumerate(indices):
            height, width = batch.size[row]
            classes = found[row, :height, :width, None]
            original = batch.original_size[row].tolist()
            maps[index] = resize(classes, *original, interpolation="nearest")[..., 0]
    return maps


@functools.partial(jax.jit, static_argnames="model")
def _classes(model: nn.Module, variables: Mapping[str, Any], images: Any) -> Array:
    logits: Any = model.apply(variables, images)
    if logits.shape[-1] > _MOST_CLASSES:
        raise InputError(
            f"{logits.shape[-1]} classes: segment tells {_MOST_CLASSES} apart, so take the argmax "
            f"of model.apply(variables, images) yourself."
        )
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)
