"""Which objects are in image files, and where."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import Array

from flaxattn.errors import require_range
from flaxattn.images.detector_preprocessing import DetectorPreprocessing
from flaxattn.models.detection import Detections, FasterRCNN, postprocess
from flaxattn.prediction.inputs import batches, explained, names_for, paths_of


class Detection(NamedTuple):
    """An object that an image may show.

    Fields:
        label: its class, from 0; the background is not one of them.
        name: of the class.
        score: from 0 to 1.
        box: left, top, right and bottom edge, in pixels of the file.
    """

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]


def detect(
    model: FasterRCNN,
    variables: Mapping[str, Any],
    images: str | Path | Iterable[str | Path],
    *,
    preprocessing: DetectorPreprocessing,
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> list[list[Detection]]:
    """The objects in each image file, those with the highest scores first.

        model, variables, preprocessing = flaxattn.from_pretrained("runs/detect")
        (found,) = flaxattn.detect(
            model, variables, "street.jpg", preprocessing=preprocessing
        )

    Args:
        model: a detector, as `create_detector` returns it.
        variables: its variables, such as `weights.load` returns.
        images: paths of image files that Pillow reads.
        preprocessing: the weights' own. With another `multiple`, images of many sizes need fewer
            programs to be compiled.
        classes: a name for each class but the background; None to name them by their number.
        threshold: the least score of an object.

    Raises InputError with the path of a file that is not a complete image; for no images, a
    threshold that is not from 0 to 1, and numbers of classes or channels that are not the model's.
    """
    require_range("threshold", threshold, 0, 1)
    names = names_for(classes, model.num_classes - 1, but=", without the background")
    paths = paths_of(images)
    variables = jax.device_put(variables)
    objects: list[list[Detection]] = [[] for _ in paths]
    for indices, batch in batches(paths, preprocessing):
        with explained(model, variables, preprocessing):
            found = jax.device_get(_found(model, variables, *batch))
        for row, index in enumerate(indices):
            objects[index] = _objects(found, row, names, threshold)
    return objects


@functools.partial(jax.jit, static_argnames="model")
def _found(
    model: FasterRCNN,
    variables: Mapping[str, Any],
    images: Array,
    sizes: Array,
    original_sizes: Array,
) -> Detections:
    found: Any = model.apply(variables, images, sizes)
    return postprocess(found, sizes, original_sizes)


def _objects(
    found: Detections, row: int, names: Sequence[str], threshold: float
) -> list[Detection]:
    of_image = zip(*(array[row].tolist() for array in found), strict=True)
    return [
        Detection(label - 1, names[label - 1], score, tuple(box))
        for box, score, label, valid in of_image
        if valid and score >= threshold
    ]
