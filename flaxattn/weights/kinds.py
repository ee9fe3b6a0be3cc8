"""Classifiers, detectors and segmenters: what makes a network, and how its images are prepared."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from flaxattn.errors import unknown
from flaxattn.images.detector_preprocessing import DetectorPreprocessing
from flaxattn.images.preprocessing import Preprocessing
from flaxattn.images.segmenter_preprocessing import SegmenterPreprocessing
from flaxattn.layers.norm import FrozenBatchNorm
from flaxattn.models import LISTED, MODELS, create_model
from flaxattn.models.detection import DETECTORS, create_detector
from flaxattn.models.segmentation import SEGMENTERS, create_segmenter
from flaxattn.weights.sources import Checkpoint

AnyPreprocessing = Preprocessing | DetectorPreprocessing | SegmenterPreprocessing


class Kind(NamedTuple):
    """Networks that answer the same question.

    Fields:
        word: what one of them is called.
        models: by their names.
        create: makes the model of a name, with its fields.
        preprocessing: the class of what images go through.
    """

    word: str
    models: Mapping[str, Any]
    create: Callable[..., nn.Module]
    preprocessing: type[AnyPreprocessing]


CLASSIFIER = Kind("classifier", MODELS, create_model, Preprocessing)
DETECTOR = Kind("detector", DETECTORS, create_detector, DetectorPreprocessing)
SEGMENTER = Kind("segmenter", SEGMENTERS, create_segmenter, SegmenterPreprocessing)
KINDS = (CLASSIFIER, DETECTOR, SEGMENTER)

# Of torchvision's networks, where their evaluation is not that of the others.
_PREPARED = {"fasterrcnn_mobilenet_v3_large_320_fpn": {"min_size": 320, "max_size": 640}}

# torchvision's released weights of this network, COCO_V1, were trained with an epsilon of 0 in the
# frozen norms. They do not say so; the file is known by how its SHA-256 begins.
_COCO_V1 = "fasterrcnn_resnet50_fpn", "258fb6c6"


def kind_of(name: str) -> Kind:
    """The kind of the network called `name`. Raises InputError for an unknown one."""
    for kind in KINDS:
        if name in kind.models:
            return kind
    raise unknown("model", name, all_names(), listed=LISTED)


def all_names() -> list[str]:
    """The names of all networks, in the order of the alphabet."""
    return sorted(name for kind in KINDS for name in kind.models)


def stated_model(
    checkpoint: Checkpoint, architecture: str | None = None, **fields: Any
) -> nn.Module:
    """The model of a checkpoint, made with what its config states, but for `fields`, which prevail.

    Args:
        checkpoint: whose config names the architecture, unless `architecture` does.
        architecture: a name instead of the config's, for whose network the config's other fields
            are not; only the number of classes is.

    Raises InputError for an unknown name, and for what the maker of the model refuses.
    """
    name = architecture or checkpoint.architecture
    assert name is not None, "the caller looks whether there is one"
    stated: dict[str, Any] = {} if architecture else checkpoint.model_fields
    if checkpoint.config.get("num_classes") is not None:
        stated["num_classes"] = checkpoint.num_classes
    if is_coco_v1(name, checkpoint.path):
        stated["norm"] = functools.partial(FrozenBatchNorm, epsilon=0.0)
    return kind_of(name).create(name, **{**stated, **fields})


def preprocessing_of(checkpoint: Checkpoint, architecture: str | None = None) -> Any:
    """What images go through before the network of a checkpoint.

    It is in the checkpoint's config; what the config leaves out is that of torchvision's weights
    for detectors and segmenters, and timm's for classifiers (`Preprocessing.of`).
    """
    name = architecture or checkpoint.architecture
    assert name is not None, "the caller looks whether there is one"
    return kind_of(name).preprocessing.of({**_PREPARED.get(name, {}), **checkpoint.config})


def is_coco_v1(name: str, path: Path) -> bool:
    """Whether the file is torchvision's of fasterrcnn_resnet50_fpn, which wants epsilon=0."""
    if name != _COCO_V1[0]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(_COCO_V1[1])
