"""Which classes image files show."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from flaxattn.errors import require_least
from flaxattn.images.preprocessing import Preprocessing
from flaxattn.prediction.inputs import explained, names_for, paths_of

_BATCH = 32


class Prediction(NamedTuple):
    """A class that an image may show: its label, its name, and its probability."""

    label: int
    name: str
    probability: float


def predict(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: str | Path | Iterable[str | Path],
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
    require_least("top", top, 1)
    paths = paths_of(images)
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
        with explained(model, variables, preprocessing):
            found = probabilities(variables, batch)
        batches.append(np.asarray(found, np.float64)[: len(chosen)])
    return [_best(row, classes, top) for row in np.concatenate(batches)]


def _best(row: np.ndarray, classes: Sequence[str] | None, top: int) -> list[Prediction]:
    names = names_for(classes, len(row))
    order = np.argsort(-row, kind="stable")[:top]
    return [Prediction(int(i), names[i], float(row[i])) for i in order]
