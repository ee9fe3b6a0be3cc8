"""Detectors by name."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from flaxattn.errors import unknown
from flaxattn.layers.norm import BatchNorm
from flaxattn.models.detection.faster_rcnn import FasterRCNN, postprocess
from flaxattn.models.detection.roi_heads import Detections
from flaxattn.models.detection.targets import Ratio, Targets
from flaxattn.models.placement import Slot

_mobilenet = functools.partial(
    FasterRCNN,
    body={"name": "mobilenet_v3_large"},
    taps=((6, 0), (7, -1)),  # both with strides 32
)
_ANCHORS = ((32, 64, 128, 256, 512),) * 3

# Names as in torchvision.
DETECTORS: dict[str, Callable[..., FasterRCNN]] = {
    "fasterrcnn_resnet50_fpn": FasterRCNN,
    "fasterrcnn_resnet50_fpn_v2": functools.partial(
        FasterRCNN,
        norm=BatchNorm,
        head_norm=BatchNorm,
        proposals={"depth": 2},
        heads={"conv_features": (256,) * 4},
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": functools.partial(
        _mobilenet, proposals={"anchor_sizes": _ANCHORS, "score_threshold": 0.05}
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": functools.partial(
        _mobilenet,
        proposals={
            "anchor_sizes": _ANCHORS,
            "score_threshold": 0.05,
            "pre_nms_test": 150,
            "post_nms_test": 150,
        },
    ),
}


def create_detector(
    name: str, num_classes: int = 91, attention: Slot = None, **fields: Any
) -> FasterRCNN:
    """The detector `name` of DETECTORS, with attention at the levels of its pyramid.

    `model.apply(variables, images, sizes)` returns `Detections`, and with targets and
    method="losses" the losses (`FasterRCNN`).

        create_detector("fasterrcnn_resnet50_fpn", attention=dict(name="se", position="post"))

    Args:
        name: a key of DETECTORS.
        num_classes: with the background, which is class 0.
        attention: what stands at the pyramid's levels (`FasterRCNN`).
        fields: the model's other fields. Of those that are mappings, as body, proposals and heads,
            entries that are not given stay as the name says.

    Raises InputError for an unknown name or field, and for what `FasterRCNN` refuses.
    """
    if name not in DETECTORS:
        raise unknown("detector", name, DETECTORS)
    known = {field.name for field in dataclasses.fields(FasterRCNN)} - {"name", "parent"}
    for field in fields:
        if field not in known:
            raise unknown(f"field of {name}", field, known)
    usual = DETECTORS[name](parent=None)
    merged = {
        field: {**getattr(usual, field), **value} if isinstance(value, Mapping) else value
        for field, value in fields.items()
    }
    return DETECTORS[name](num_classes=num_classes, attention=attention, **merged)


__all__ = [
    "DETECTORS",
    "Detections",
    "FasterRCNN",
    "Ratio",
    "Targets",
    "create_detector",
    "postprocess",
]
