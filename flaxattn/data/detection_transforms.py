"""Images with objects, as torchvision's detectors take them, on a canvas of one size.

    image: float32 (H, W, C), normalised, resized, and zeros from its own size on
    size: int32 (2,), height and width of the resized image
    original_size: int32 (2,), height and width in the data set
    boxes: float32 (G, 4), left, top, right, bottom in pixels of the resized image, then zeros
    labels: int32 (G,), from 0: where a network has the background for class 0, add 1
    valid: bool (G,), which of the G are objects
    difficult: bool (G,), which of these count neither as found nor as missed
    image_id: int32 ()

An image is resized as `detector_size` says. All images of a run share one canvas, so that a program
is compiled once; there are no buckets for upright and for oblong images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxattn.data.records import Example, Objects, RandomTransform, Record, Transform
from flaxattn.errors import InputError, require_least
from flaxattn.images.boxes import flip_boxes, scale_boxes
from flaxattn.images.canvas import detector_size, on_canvas, require_canvas, require_sizes
from flaxattn.images.decoding import decode
from flaxattn.images.geometry import interpolate
from flaxattn.images.preprocessing import normalise, require_normalisation


def train_transform(config: Mapping[str, Any]) -> RandomTransform:
    """The transform of training, which leaves difficult objects out.

    Args:
        config: as for `eval_transform`, but one of the `min_size` is drawn for each image; and
            `augment.flip`, whether every other image is mirrored, left to right.

    Raises InputError as `eval_transform`.
    """
    place = _Placer(config)
    flip = config["augment"]["flip"]

    def transform(record: Record, rng: np.random.Generator) -> Example:
        return place(
            record,
            min_size=int(rng.choice(place.min_sizes)),
            mirrored=flip and rng.random() < 0.5,
            with_difficult=False,
        )

    return transform


def eval_transform(config: Mapping[str, Any]) -> Transform:
    """The transform of evaluation, which keeps difficult objects and says which they are.

    Args:
        config: `channels`, `mean`, `std`, `min_size` (of several, the last), `max_size`, `canvas`
            (height and width of an example's image) and `max_objects` (G).

    Raises InputError for values that do not go together; when called, for an image that cannot be
    read, a box that is not inside its image, and more than `max_objects` objects.
    """
    place = _Placer(config)

    def transform(record: Record) -> Example:
        return place(record, min_size=place.min_sizes[-1], mirrored=False, with_difficult=True)

    return transform


class _Placer:
    """Puts an image and its boxes on the canvas."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.channels, self.max_objects = config["channels"], config["max_objects"]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        require_normalisation(self.channels, self.mean, self.std)
        require_least("max_objects", self.max_objects, 1)
        sizes = config["min_size"]
        self.min_sizes = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
        self.max_size, self.canvas = config["max_size"], tuple(config["canvas"])
        require_sizes(sizes, self.max_size)
        require_canvas(self.canvas)

    def __call__(
        self, record: Record, *, min_size: int, mirrored: bool, with_difficult: bool
    ) -> Example:
        pixels = decode(record["image"], channels=self.channels, name=record["name"])
        height, width = pixels.shape[:2]
        objects = record["objects"]
        _require_inside(objects["boxes"], height, width, record["name"])
        boxes = objects["boxes"]
        if mirrored:
            pixels, boxes = pixels[:, ::-1], flip_boxes(boxes, width)
        size = detector_size(
            height, width, min_size=min_size, max_size=self.max_size, canvas=self.canvas
        )
        resized = interpolate(normalise(pixels, mean=self.mean, std=self.std), *size)
        boxes = scale_boxes(boxes, (height, width), size)
        kept = np.flatnonzero(with_difficult | ~objects["difficult"])
        return {
            "image": on_canvas(resized, self.canvas),
            "size": np.array(size, np.int32),
            "original_size": np.array((height, width), np.int32),
            **self._padded(objects, boxes, kept, record["name"]),
            "image_id": np.int32(objects["image_id"]),
        }

    def _padded(
        self, objects: Objects, boxes: np.ndarray, kept: np.ndarray, name: str
    ) -> dict[str, np.ndarray]:
        count = len(kept)
        if count > self.max_objects:
            raise InputError(
                f"{name} has {count} objects, more than max_objects={self.max_objects}: use "
                f"data.max_objects={count} or more."
            )
        rows = ((0, self.max_objects - count),)
        return {
            "boxes": np.pad(boxes[kept], (*rows, (0, 0))),
            "labels": np.pad(objects["labels"][kept], rows),
            "valid": np.arange(self.max_objects) < count,
            "difficult": np.pad(objects["difficult"][kept], rows),
        }


def _require_inside(boxes: np.ndarray, height: int, width: int, name: str) -> None:
    corners, opposite = boxes[:, :2], boxes[:, 2:]
    inside = (corners >= 0) & (corners < opposite) & (opposite <= (width, height))
    if not inside.all():
        wrong = boxes[~inside.all(axis=1)][0].tolist()
        raise InputError(
            f"{name} is an image of {width}x{height} pixels, and the box {wrong} is empty or not "
            f"inside it: correct its annotation, left, top, right and bottom edge."
        )
