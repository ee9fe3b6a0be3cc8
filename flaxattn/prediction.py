"""What a network sees in image files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict

from flaxattn.errors import InputError
from flaxattn.images.preprocessing import Preprocessing
from flaxattn.layers.abstract_variables import abstract_variables

_BATCH = 32


class Prediction(NamedTuple):
    """A class that an image may show: its label, its name, and its probability."""

    label: int
    name: str
    probability: float


def predict(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Iterable[str | Path],
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str] | None = None,
    top: int = 5,
    several: bool = False,
) -> list[list[Prediction]]:
    """The likeliest classes of each image file, the likeliest first.

    Args:
        model: returns logits (N, num_classes) for images (N, H, W, C), as those of `create_model`.
        variables: its variables, such as `weights.load` returns.
        images: paths of image files that Pillow reads.
        preprocessing: the weights' own: `Preprocessing.of(checkpoint.config)`.
        classes: a name for each class; None to name them by their number.
        top: how many classes at most.
        several: whether an image may show several classes, each with a probability of its own (a
            sigmoid), instead of one (a softmax).

    Raises InputError with the path of a file that is not a complete image; for no images, a `top`
    below 1, and numbers of classes or channels that are not the model's.
    """
    paths = [images] if isinstance(images, str | Path) else list(images)
    if not paths or top < 1:
        raise InputError(f"{len(paths)} images, top={top}: give at least one image, and top >= 1.")
    size = min(_BATCH, len(paths))

    @jax.jit
    def probabilities(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, images)
        return jax.nn.sigmoid(logits) if several else jax.nn.softmax(logits)

    variables = jax.device_put(variables)
    batches = []
    for start in range(0, len(paths), size):
        batch = np.zeros((size, *preprocessing.input_size), np.float32)
        chosen = paths[start : start + size]
        for row, path in enumerate(chosen):
            batch[row] = preprocessing(path)
        try:
            found = probabilities(variables, batch)
        except (InputError, ScopeParamShapeError) as error:
            misfit = _misfit(model, variables, preprocessing)
            if misfit is None:
                raise
            raise misfit from error
        batches.append(np.asarray(found, np.float64)[: len(chosen)])
    return [_best(row, classes, top) for row in np.concatenate(batches)]


def _misfit(
    model: nn.Module, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> InputError | None:
    """The error for images of another number of channels than the variables are for."""
    channels = preprocessing.input_size[-1]
    shapes = flatten_dict(abstract_variables(model, (1, *preprocessing.input_size)))
    for path, array in flatten_dict(dict(variables)).items():
        wanted, shape = shapes[path].shape if path in shapes else (), np.shape(array)
        if path[-1] == "kernel" and wanted[-2:-1] == (channels,) != shape[-2:-1]:
            return InputError(
                f"input_size={preprocessing.input_size} has {channels} channels, but the kernel "
                f"{'/'.join(path[1:-1])} of these variables takes {shape[-2]}: use the "
                f"preprocessing of these weights, or load them for such images (load_pretrained "
                f"has grey=True)."
            )
    return None


def _best(row: np.ndarray, classes: Sequence[str] | None, top: int) -> list[Prediction]:
    if classes is not None and len(classes) != len(row):
        raise InputError(
            f"{len(classes)} names for the {len(row)} classes of the model: give one for each."
        )
    order = np.argsort(-row, kind="stable")[:top]
    return [
        Prediction(int(i), str(i) if classes is None else classes[i], float(row[i])) for i in order
    ]
