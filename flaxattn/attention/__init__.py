"""Attention mechanisms of convolutional networks, one a file, and their names."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from flaxattn.attention.attention_residual import AttentionResidual
from flaxattn.attention.cbam import CBAM
from flaxattn.attention.channel_attention import ChannelAttention
from flaxattn.attention.dual_attention import DualAttention
from flaxattn.attention.efficient_channel import EfficientChannel
from flaxattn.attention.selective_kernel import SelectiveKernel
from flaxattn.attention.self_attention import SelfAttention
from flaxattn.attention.simplified_psa import SimplifiedPSA
from flaxattn.attention.spatial_attention import SpatialAttention
from flaxattn.attention.squeeze_excite import SqueezeExcite
from flaxattn.errors import InputError, unknown

__all__ = [
    "ATTENTION",
    "CBAM",
    "AttentionResidual",
    "ChannelAttention",
    "DualAttention",
    "EfficientChannel",
    "SelectiveKernel",
    "SelfAttention",
    "SimplifiedPSA",
    "SpatialAttention",
    "SqueezeExcite",
    "create_attention",
]

ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "cbam": CBAM,
    "channel": ChannelAttention,
    "eca": EfficientChannel,
    "sca": DualAttention,
    "sca_lite": DualAttention.lite,
    "sca_residual": AttentionResidual,
    "se": SqueezeExcite,
    "self_attention": SelfAttention,
    "simplified_psa": SimplifiedPSA,
    "sk": SelectiveKernel,
    "spatial": SpatialAttention,
}

# Three papers abbreviate their layer to PSA, and an article gives the name to a fourth.
_PSA = {
    "psanet": "point-wise spatial attention",
    "pyramid_squeeze": "pyramid squeeze attention",
    "polarized": "polarized self-attention",
    "simplified_psa": "article 0's simplification of psanet",
}


def create_attention(name: str, *, variant: str | None = None, **fields: Any) -> nn.Module:
    """The attention layer called `name`.

    Args:
        name: a key of `ATTENTION`.
        variant: one of the layer's `variants`, such as "official"; the paper's if None.
        **fields: the layer's own fields, which prevail over the variant's.

    Raises InputError for unknown names, variants and fields, and for fields that are missing.
    """
    if name == "psa":
        offered = [f"{name} ({meaning})" for name, meaning in _PSA.items() if name in ATTENTION]
        raise InputError(
            f"'psa' could be any of three papers' layers, psanet, pyramid_squeeze and polarized, "
            f"or an article's simplification: use {' or '.join(offered)}."
        )
    if name not in ATTENTION:
        raise unknown("attention", name, ATTENTION)
    create: Any = ATTENTION[name]
    is_variant = inspect.ismethod(create)
    layer = create.__self__ if is_variant else create
    _require_fields(name, layer, fields)
    if variant is None:
        return create(**fields)
    if is_variant:
        raise InputError(f"{name} is a variant already: leave variant={variant!r} out.")
    if variant not in layer.variants:
        raise unknown(f"variant of {name}", variant, layer.variants)
    return getattr(layer, variant)(**fields)


def _require_fields(name: str, layer: Any, fields: dict[str, Any]) -> None:
    known = {field.name: field for field in dataclasses.fields(layer)}
    own = [field for field in known if field not in ("parent", "name")]
    for field in fields:
        if field not in known:
            raise unknown(f"field of {name}", field, own)
    for field in own:
        default = (known[field].default, known[field].default_factory)
        if field not in fields and default == (dataclasses.MISSING, dataclasses.MISSING):
            raise InputError(f"{name} needs its field {field}: add {field}=... .")
