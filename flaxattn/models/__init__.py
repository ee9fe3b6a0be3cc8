"""Backbones by name: the one place where a string becomes a model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from flaxattn.errors import InputError, unknown
from flaxattn.layers.fields import checked
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

# The command that shows these names.
LISTED = "python -m flaxattn list --models"

# What timm calls by another name, or does in another way.
_TIMM = {
    "attn_layer": "pass attention=dict(name=...)",
    "block_args": "pass attention=dict(name=...), which takes the layer's fields too",
    "checkpoint_path": "load it with flaxattn.weights.load(model, path, input_shape)",
    "drop_path_rate": "it is called drop_path",
    "drop_rate": "it is called dropout",
    "features_only": "every model has model.apply(variables, images, method='features')",
    "gate_layer": "it is a field of the attention: attention=dict(name='se', gate_activation=...)",
    "in_chans": "leave it out: the first convolution takes as many channels as the images have",
    "out_indices": "choose from the list that model.apply(..., method='features') returns",
    "pretrained": "load weights with flaxattn.weights.load(model, 'timm/...', input_shape)",
}


@checked
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
        attention: what stands in the residual branches (`place.place`). Blocks where it places
            nothing keep what the name says: squeeze-and-excitation in seresnet50, nothing in
            resnet50. False for nothing at all.
        fields: the model's other fields, such as conv, context, output_stride, stem and dtype
            (`ResNet`).

    Raises InputError for an unknown name or field, and for a placement that cannot be.
    """
    if name not in MODELS:
        architecture, _, tag = name.rpartition("/")[2].partition(".")
        if tag and architecture in MODELS:
            raise InputError(
                f"{name!r} names weights: make the model with create_model({architecture!r}), and "
                f"load them with flaxattn.weights.load(model, 'timm/{architecture}.{tag}', ...)."
            )
        raise unknown("model", name, MODELS, listed=LISTED)
    make = MODELS[name]
    model_class: Any = make.func if isinstance(make, functools.partial) else make
    known = {field.name for field in dataclasses.fields(model_class)} - {"name", "parent"}
    for field in fields:
        if field in _TIMM:
            raise InputError(f"{name} has no field {field}, which is timm's: {_TIMM[field]}.")
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
