"""From a record to an example, as a config asks for: what `flaxattn.images` has, composed."""

from collections.abc import Mapping
from typing import Any

from flaxattn.data import detection_transforms, label_transforms, segmentation_transforms
from flaxattn.data.records import RandomTransform, Transform

_OF_ANNOTATION = {
    "class": label_transforms,
    "classes": label_transforms,
    "objects": detection_transforms,
    "masks": segmentation_transforms,
}


def train_transform(config: Mapping[str, Any], *, annotation: str = "class") -> RandomTransform:
    """The augmentation that a config asks for, from a record and a generator to an example.

    `annotation` is the one that the source is opened for. What of the config is read, what an
    example holds and what is refused say `label_transforms`, `detection_transforms` and
    `segmentation_transforms`.
    """
    return _OF_ANNOTATION[annotation].train_transform(config)


def eval_transform(config: Mapping[str, Any], *, annotation: str = "class") -> Transform:
    """As `train_transform`, without anything random: from a record to an example."""
    return _OF_ANNOTATION[annotation].eval_transform(config)
