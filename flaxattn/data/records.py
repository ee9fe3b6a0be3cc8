"""What every source gives and every transform takes: one schema for all data sets."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

from flaxattn.errors import InputError

# What a task may learn of an image, in words.
ANNOTATIONS = {
    "class": "image classification",
    "classes": "multi-label classification",
    "objects": "object detection",
    "masks": "semantic segmentation",
}

# The label of what counts nowhere: pixels that belong to no class, classes that are unclear.
IGNORED = 255


class Objects(TypedDict):
    """The objects of one image, of which there may be none.

    Fields:
        boxes: float32 (n, 4), left, top, right and bottom edge in pixels from the image's corner: a
            box around the first pixel alone is 0, 0, 1, 1.
        labels: int32 (n,), from 0.
        difficult: bool (n,), objects that are neither required nor wrong to find: VOC's difficult
            ones, COCO's crowds.
        image_id: the image's place in its split, or the number that COCO gives it.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    image_id: int


class Record(TypedDict):
    """One example, its image undecoded, with the annotation that the source was opened for.

    Fields:
        image: encoded bytes.
        name: what to call it in an error.
        label: of "class" the index of its class; of "classes" uint8 (K,), 1 for each it has and
            `IGNORED` for each that counts neither as there nor as absent.
        objects: of "objects".
        mask: of "masks", uint8 (H, W), the index of each pixel's class, or `IGNORED`.
    """

    image: bytes
    name: str
    label: NotRequired[int | np.ndarray]
    objects: NotRequired[Objects]
    mask: NotRequired[np.ndarray]


class Source(Protocol):
    """Random access to the records of one split; safe to read from threads and to pickle."""

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


# A record as a network is trained on it: arrays whose shapes are those of all examples.
Example = Mapping[str, Any]
Transform = Callable[[Record], Example]
RandomTransform = Callable[[Record, np.random.Generator], Example]


def read_file(file: str | Path) -> bytes:
    """The content of a file of a data set. Raises InputError if it cannot be read."""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        # Not "remove it": with another set of files, a run that goes on has another order.
        raise InputError(
            f"{file} cannot be read ({error.strerror or error}): make it readable or put it back."
        ) from error


def classes_present(labels: np.ndarray, unclear: np.ndarray, num_classes: int) -> np.ndarray:
    """uint8 (K,): 1 for each class among the labels (n,), `IGNORED` for one that is only unclear.

    VOC calls these 0, beside its 1 and -1, and counts them neither as right nor as wrong.
    """
    classes = np.arange(num_classes)
    present = np.isin(classes, labels)
    return np.where(np.isin(classes, unclear) & ~present, IGNORED, present).astype(np.uint8)


def classes_of(objects: Objects, num_classes: int) -> np.ndarray:
    """uint8 (K,): the classes of an image's objects; those of difficult ones alone are unclear."""
    labels, difficult = objects["labels"], objects["difficult"]
    return classes_present(labels[~difficult], labels[difficult], num_classes)
