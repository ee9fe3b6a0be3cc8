"""Backbones by name: the one place where a string becomes a model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from flaxattn.errors import unknown
from flaxattn.models.efficientnet import EFFICIENTNETS
from flaxattn.models.mobilenet import MOBILENETS
from flaxattn.models.placement import Placement, Slot
from flaxattn.models.regnet import REGNETS, RegNet
from flaxattn.models.residual_block import BasicBlock, Bottleneck
from flaxattn.models.resnet import ResNet
from flaxattn.models.resnets import RESNETS
from flaxattn.models.senet import SENETS, SENet
from flaxattn.models.vgg import VGGS

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: functools.partial(ResNet, **fields) for name, fields in RESNETS.items()},
    **{name: functools.partial(SENet, **fields) for name, fields in SENETS.items()},
    **{name: functools.partial(RegNet, **fields) for name, fields in REGNETS.items()},
    **VGGS,
    **MOBILENETS,
    **EFFICIENTNETS,
}


def create_model(
    name: str, num_classes: int = 1000, attention: Slot = None, **fields: Any
) -> nn.Module:
    """The backbone `name` of MODELS, with attention where `attention` says.

    `model.apply(variables, images, train=False)` returns float32 logits (N, num_classes) for images
    (N, H, W, C), and with `method="features"` the list of the last maps at each stride.

        create_model("resnet50", attention=dict(name="se", reduction=16, stages=(2, 3, 4)))

    Args:
        name: a key of MODELS.
        num_classes: width of the last layer; 0 leaves it out, and the model returns the pooled map.
        attention: what stands in the residual branches (`place.place`); False for nothing;
            None for what the name says: squeeze-and-excitation in seresnet50, nothing in resnet50.
        fields: the model's other fields, such as conv, context, output_stride, stem and dtype
            (`ResNet`).

    Raises InputError for an unknown name or field, and for a placement that cannot be.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    make = MODELS[name]
    model_class: Any = make.func if isinstance(make, functools.partial) else make
    known = {field.name for field in dataclasses.fields(model_class)} - {"name", "parent"}
    for field in fields:
        if field not in known:
            raise unknown(f"field of {name}", field, known)
    if attention is not None:
        fields["attention"] = attention
    return make(num_classes=num_classes, **fields)


__all__ = [
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "Placement",
    "RegNet",
    "ResNet",
    "SENet",
    "create_model",
]
