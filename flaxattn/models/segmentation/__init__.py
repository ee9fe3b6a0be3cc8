"""Segmentation networks by name."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from flaxattn.attention.mechanism import LayerFactory, layer_of
from flaxattn.errors import InputError, unknown
from flaxattn.models import MODELS
from flaxattn.models.placement import Slot
from flaxattn.models.segmentation.criss_cross_head import CrissCrossHead
from flaxattn.models.segmentation.deeplab_head import DeepLabHead
from flaxattn.models.segmentation.dual_attention_head import DualAttentionHead
from flaxattn.models.segmentation.fcn_head import FCNHead
from flaxattn.models.segmentation.head import Head
from flaxattn.models.segmentation.lraspp_head import LRASPPHead
from flaxattn.models.segmentation.psa_head import PSAHead
from flaxattn.models.segmentation.segmenter import Segmenter


def _backbone(name: str, *, output_stride: int = 8, **fields: Any) -> LayerFactory:
    return functools.partial(MODELS[name], num_classes=0, output_stride=output_stride, **fields)


# The shallow map of torchvision's MobileNetV3 is that of the first block with strides 8.
_mobilenet = functools.partial(
    Segmenter,
    network=_backbone("mobilenet_v3_large", output_stride=16, head_features=0),
    aux_place=(3, 0),
)
_aligned = functools.partial(Segmenter, align_corners=True)
_dsn = functools.partial(
    FCNHead,
    features=512,
    drop_channels=True,
    use_bias=True,
    activation=CrissCrossHead.activation,
)
_RESNETS = ("resnet50", "resnet101")

# torchvision's, and a small one of our own; below them those of three papers, as in their authors'
# repositories: semseg and CCNet have ResNets with a deep stem, and DANet's published weights a
# multi-grid.
SEGMENTERS: dict[str, Callable[..., Segmenter]] = {
    **{
        f"fcn_{name}": functools.partial(
            Segmenter, network=_backbone(name), head=FCNHead, aux_head=FCNHead
        )
        for name in _RESNETS
    },
    **{
        f"deeplabv3_{name}": functools.partial(
            Segmenter, network=_backbone(name), head=DeepLabHead, aux_head=FCNHead
        )
        for name in _RESNETS
    },
    "deeplabv3_mobilenet_v3_large": functools.partial(
        _mobilenet, head=DeepLabHead, places=((7, -1),), aux_head=FCNHead
    ),
    "lraspp_mobilenet_v3_large": functools.partial(
        _mobilenet, head=LRASPPHead, places=((3, 0), (7, -1))
    ),
    "lraspp_resnet10": functools.partial(
        Segmenter, network=_backbone("resnet10"), head=LRASPPHead, places=((2, -1), (4, -1))
    ),
    **{
        f"psanet_{name}": functools.partial(
            _aligned,
            network=_backbone(f"{name}s", dilate_first=True),
            head=PSAHead,
            aux_head=functools.partial(FCNHead, drop_channels=True),
            naming="semseg",
        )
        for name in _RESNETS
    },
    **{
        f"danet_{name}": functools.partial(
            _aligned,
            network=_backbone(name, multi_grid=(1, 2, 4)),
            head=DualAttentionHead,
            naming="danet",
        )
        for name in _RESNETS
    },
    **{
        f"ccnet_{name}": functools.partial(
            _aligned,
            network=_backbone(f"{name}s", dilate_first=True),
            head=CrissCrossHead,
            aux_head=_dsn,
            naming="ccnet",
        )
        for name in _RESNETS
    },
}


def create_segmenter(
    name: str,
    num_classes: int = 21,
    attention: Slot = None,
    *,
    aux: bool | Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Segmenter:
    """The segmentation network `name` of SEGMENTERS.

    `model.apply(variables, images, train=False)` returns float32 logits (N, H, W, num_classes) for
    images (N, H, W, C); with `train=True`, or `aux=True`, a dict of "out" and the auxiliary "aux".

        create_segmenter("fcn_resnet50", attention=dict(name="danet_position"))
        create_segmenter("deeplabv3_resnet50", backbone=dict(attention="se", drop_path=0.1))

    Args:
        name: a key of SEGMENTERS.
        num_classes: with the background; 21 for PASCAL VOC.
        attention: between the backbone and the head, on the backbone's last map, in any form that
            `place.place` takes.
        aux: whether there is an auxiliary head, or fields of it; None for what the name has.
        backbone: fields of the backbone, such as attention, context, drop_path and output_stride.
        head: fields of the head, such as dropout.
        fields: of the `Segmenter`, such as dtype and norm.

    Raises InputError for an unknown name or field, for an attention that cannot be, and for the
    auxiliary head of a network that has none.
    """
    if name not in SEGMENTERS:
        raise unknown("segmenter", name, SEGMENTERS)
    make: Any = _with_fields(SEGMENTERS[name], {**fields, "num_classes": num_classes})
    parts = make.keywords
    parts["network"] = _with_fields(parts["network"], backbone or {})
    parts["head"] = _with_fields(parts["head"], head or {})
    if aux is False:
        parts["aux_head"] = None
    elif aux is not None:
        if parts.get("aux_head") is None:
            raise InputError(f"{name} has no auxiliary head: leave aux={aux!r} out.")
        if aux is not True:
            parts["aux_head"] = _with_fields(parts["aux_head"], aux)
    return make(attention=attention, **parts)


def _with_fields(factory: LayerFactory, fields: Mapping[str, Any]) -> LayerFactory:
    """`factory` with `fields`, or InputError for one that its layer does not have."""
    layer = layer_of(factory)
    known = {field.name for field in dataclasses.fields(layer)} - {"name", "parent"}
    for field in fields:
        if field not in known:
            raise unknown(f"field of {layer.__name__}", field, known)
    return functools.partial(factory, **fields)


__all__ = [
    "SEGMENTERS",
    "CrissCrossHead",
    "DeepLabHead",
    "DualAttentionHead",
    "FCNHead",
    "Head",
    "LRASPPHead",
    "PSAHead",
    "Segmenter",
    "create_segmenter",
]
