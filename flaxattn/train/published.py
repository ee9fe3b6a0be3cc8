"""The network that a run has trained, in a file for everybody else."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flaxattn.images.detector_preprocessing import DetectorPreprocessing
from flaxattn.images.preprocessing import Preprocessing
from flaxattn.images.segmenter_preprocessing import SegmenterPreprocessing
from flaxattn.weights import write

NAME = "model.npz"


def publish(
    workdir: Path, config: ConfigDict, variables: Mapping[str, Any], class_names: tuple[str, ...]
) -> None:
    """Writes WORKDIR/model.npz, and model.json beside it, for `flaxattn.from_pretrained(WORKDIR)`.

    model.json has timm's fields (architecture, num_classes, label_names, how images are prepared)
    and, under "model_fields", what else `create_model` needs, or `create_segmenter` or
    `create_detector`. Of a detector num_classes counts the background, which has no name; and for
    these two it says how images are resized and put on the run's canvas, instead of how they are
    cut.
    """
    model = config.model.to_dict()
    for slot, placement in config.init.graft.to_dict().items():
        named = {"name": placement} if isinstance(placement, str) else placement
        model[slot] = named if slot == "conv" else {**named, "graft": True}
    stated = {
        "architecture": model.pop("name"),
        "model_fields": model,
        "task": config.task,
        "num_classes": len(class_names) + (config.task == "detection"),
        "label_names": class_names,
        **_prepared(config),
    }
    write(workdir / NAME, variables, config=stated, overwrite=True)


def _prepared(config: ConfigDict) -> dict[str, Any]:
    """What images went through in the run's own evaluation."""
    data = config.data
    mean, std = tuple(data.mean), tuple(data.std)
    if config.task == "segmentation":
        canvas = tuple(data.canvas)
        return SegmenterPreprocessing(data.eval_resize, mean, std, canvas).to_config()
    if config.task == "detection":
        sizes, canvas = data.min_size, tuple(data.canvas)
        min_size = sizes[-1] if isinstance(sizes, tuple) else sizes
        return DetectorPreprocessing(min_size, data.max_size, mean, std, canvas).to_config()
    size, resized = data.image_size, data.eval_resize
    part = size / resized
    if math.floor(size / part) != resized:  # the quotient was rounded
        part = float(np.nextafter(part, 0))
    preprocessing = Preprocessing(
        (size, size, data.channels),
        mean,
        std,
        crop_pct=part,
        crop_mode=data.crop_mode,
    )
    return preprocessing.to_config()
