"""The network that a run has trained, in a file for everybody else."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flaxattn.images.preprocessing import Preprocessing
from flaxattn.weights import write

NAME = "model.npz"
# Of the tasks whose images are not cut, the fields that say how they are prepared.
_OF_WHOLE_IMAGES = {
    "segmentation": ("mean", "std", "eval_resize"),
    "detection": ("mean", "std", "canvas", "min_size", "max_size"),
}


def publish(
    workdir: Path, config: ConfigDict, variables: Mapping[str, Any], class_names: tuple[str, ...]
) -> None:
    """Writes WORKDIR/model.npz, and model.json beside it, for `flaxattn.from_pretrained(WORKDIR)`.

    model.json has timm's fields (architecture, num_classes, label_names, how images are prepared)
    and, under "model_fields", what else `create_model` needs, or `create_segmenter` or
    `create_detector`; for these two, instead of how images are cut, how they are resized.
    """
    model = config.model.to_dict()
    for slot, placement in config.init.graft.to_dict().items():
        named = {"name": placement} if isinstance(placement, str) else placement
        model[slot] = named if slot == "conv" else {**named, "graft": True}
    stated = {
        "architecture": model.pop("name"),
        "model_fields": model,
        "task": config.task,
        "num_classes": len(class_names),
        "label_names": class_names,
        **_prepared(config),
    }
    write(workdir / NAME, variables, config=stated, overwrite=True)


def _prepared(config: ConfigDict) -> dict[str, Any]:
    """What images went through in the run's own evaluation."""
    data = config.data
    if config.task in _OF_WHOLE_IMAGES:
        return {name: data[name] for name in _OF_WHOLE_IMAGES[config.task]}
    size, resized = data.image_size, data.eval_resize
    part = size / resized
    if math.floor(size / part) != resized:  # the quotient was rounded
        part = float(np.nextafter(part, 0))
    preprocessing = Preprocessing(
        (size, size, data.channels),
        tuple(data.mean),
        tuple(data.std),
        crop_pct=part,
        crop_mode=data.crop_mode,
    )
    return preprocessing.to_config()
