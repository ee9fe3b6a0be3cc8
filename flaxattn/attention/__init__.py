"""Attention mechanisms of convolutional networks, one a file, and their names."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from flaxattn.attention.attention_residual import AttentionResidual as AttentionResidual
from flaxattn.attention.bam import BAM as BAM
from flaxattn.attention.bilinear_attention import BilinearAttention as BilinearAttention
from flaxattn.attention.bottleneck_self_attention import (
    BottleneckSelfAttention as BottleneckSelfAttention,
)
from flaxattn.attention.cbam import CBAM as CBAM
from flaxattn.attention.channel_affinity import ChannelAffinity as ChannelAffinity
from flaxattn.attention.channel_attention import ChannelAttention as ChannelAttention
from flaxattn.attention.cond_conv import CondConv as CondConv
from flaxattn.attention.coordinate_attention import CoordinateAttention as CoordinateAttention
from flaxattn.attention.criss_cross import CrissCross as CrissCross
from flaxattn.attention.dense_implicit import DenseImplicit as DenseImplicit
from flaxattn.attention.double_attention import DoubleAttention as DoubleAttention
from flaxattn.attention.dual_attention import DualAttention as DualAttention
from flaxattn.attention.dynamic_conv import DynamicConv as DynamicConv
from flaxattn.attention.effective_squeeze_excite import (
    EffectiveSqueezeExcite as EffectiveSqueezeExcite,
)
from flaxattn.attention.efficient_channel import EfficientChannel as EfficientChannel
from flaxattn.attention.efficient_local import EfficientLocal as EfficientLocal
from flaxattn.attention.frequency_channel import FrequencyChannel as FrequencyChannel
from flaxattn.attention.gated_channel import GatedChannel as GatedChannel
from flaxattn.attention.gather_excite import GatherExcite as GatherExcite
from flaxattn.attention.gaussian_context import GaussianContext as GaussianContext
from flaxattn.attention.generalized import GeneralizedAttention as GeneralizedAttention
from flaxattn.attention.global_context import GlobalContext as GlobalContext
from flaxattn.attention.halo import HaloAttention as HaloAttention
from flaxattn.attention.lambda_layer import LambdaLayer as LambdaLayer
from flaxattn.attention.large_kernel import LargeKernel as LargeKernel
from flaxattn.attention.large_selective_kernel import LargeSelectiveKernel as LargeSelectiveKernel
from flaxattn.attention.large_separable_kernel import LargeSeparableKernel as LargeSeparableKernel
from flaxattn.attention.linear_context import LinearContext as LinearContext
from flaxattn.attention.mechanism import layer_of, required_fields
from flaxattn.attention.multi_head import MultiHeadAttention as MultiHeadAttention
from flaxattn.attention.non_local import NonLocal as NonLocal
from flaxattn.attention.normalization_based import NormalizationBased as NormalizationBased
from flaxattn.attention.polarized import PolarizedAttention as PolarizedAttention
from flaxattn.attention.psanet import PSANet as PSANet
from flaxattn.attention.pyramid_squeeze import PyramidSqueeze as PyramidSqueeze
from flaxattn.attention.sca_cnn import SCACNN as SCACNN
from flaxattn.attention.second_order_pooling import SecondOrderPooling as SecondOrderPooling
from flaxattn.attention.selective_kernel import SelectiveKernel as SelectiveKernel
from flaxattn.attention.self_attention import SelfAttention as SelfAttention
from flaxattn.attention.shared_attention import SharedAttention as SharedAttention
from flaxattn.attention.shuffle_attention import ShuffleAttention as ShuffleAttention
from flaxattn.attention.simam import SimAM as SimAM
from flaxattn.attention.simple_coordinate import (
    SimpleCoordinateAttention as SimpleCoordinateAttention,
)
from flaxattn.attention.simplified_psa import SimplifiedPSA as SimplifiedPSA
from flaxattn.attention.spatial_attention import SpatialAttention as SpatialAttention
from flaxattn.attention.spatial_group_enhance import SpatialGroupEnhance as SpatialGroupEnhance
from flaxattn.attention.split_attention import SplitAttention as SplitAttention
from flaxattn.attention.squeeze_excite import SqueezeExcite as SqueezeExcite
from flaxattn.attention.strip_attention import StripAttention as StripAttention
from flaxattn.attention.strip_pooling import StripPooling as StripPooling
from flaxattn.attention.style_recalibration import StyleRecalibration as StyleRecalibration
from flaxattn.attention.triplet import TripletAttention as TripletAttention
from flaxattn.attention.window_attention import WindowAttention as WindowAttention
from flaxattn.errors import InputError, unknown
from flaxattn.layers.fields import checked

ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "bam": BAM,
    "bat": BilinearAttention,
    "botnet": BottleneckSelfAttention,
    "cbam": CBAM,
    "ceca": EfficientChannel.circular,
    "channel": ChannelAttention,
    "cond_conv": CondConv,
    "coordinate": CoordinateAttention,
    "criss_cross": CrissCross,
    "danet_channel": ChannelAffinity,
    "danet_position": SelfAttention.danet,
    "dia": DenseImplicit,
    "double_attention": DoubleAttention,
    "dynamic_conv": DynamicConv,
    "eca": EfficientChannel,
    "efficientnet_se": SqueezeExcite.efficientnet,
    "ela": EfficientLocal,
    "ese": EffectiveSqueezeExcite,
    "fca": FrequencyChannel,
    "gated_channel": GatedChannel,
    "gather_excite": GatherExcite,
    "gct": GaussianContext,
    "generalized": GeneralizedAttention,
    "global_context": GlobalContext,
    "grouped_se": SqueezeExcite.grouped,
    "gsop": SecondOrderPooling,
    "halo": HaloAttention,
    "lambda": LambdaLayer,
    "lcbam": CBAM.light,
    "lct": LinearContext,
    "lka": LargeKernel,
    "lsk": LargeSelectiveKernel,
    "lska": LargeSeparableKernel,
    "mobilenet_v3_se": SqueezeExcite.mobilenet_v3,
    "multi_head": MultiHeadAttention,
    "nam": NormalizationBased,
    "non_local": NonLocal,
    "polarized": PolarizedAttention,
    "psanet": PSANet,
    "pyramid_squeeze": PyramidSqueeze,
    "sca": DualAttention,
    "sca_channel": DualAttention.channel_only,
    "sca_cnn": SCACNN,
    "sca_lite": DualAttention.lite,
    "sca_residual": AttentionResidual,
    "se": SqueezeExcite,
    "self_attention": SelfAttention,
    "sge": SpatialGroupEnhance,
    "shuffle": ShuffleAttention,
    "simam": SimAM,
    "simple_coordinate": SimpleCoordinateAttention,
    "simplified_psa": SimplifiedPSA,
    "sk": SelectiveKernel,
    "spatial": SpatialAttention,
    "spatial_separable": SpatialAttention.separable,
    "split_attention": SplitAttention,
    "srm": StyleRecalibration,
    "strip": StripAttention,
    "strip_pooling": StripPooling,
    "triplet": TripletAttention,
    "window": WindowAttention,
}

# The command that shows these names.
LISTED = "python -m flaxattn list"

# Three papers abbreviate their layer to PSA, and an article gives the name to a fourth.
_PSA = {
    "psanet": "point-wise spatial attention",
    "pyramid_squeeze": "pyramid squeeze attention",
    "polarized": "polarized self-attention",
    "simplified_psa": "article 0's simplification of psanet",
}


@checked
def create_attention(name: str, *, variant: str | None = None, **fields: Any) -> nn.Module:
    """The attention layer called `name`.

    Args:
        name: a key of `ATTENTION`.
        variant: one of the layer's `variants`, such as "official"; the paper's if None.
        **fields: the layer's own fields, which prevail over the variant's.

    Raises InputError for unknown names, variants and fields, and for fields that are missing.
    """
    require_name(name)
    create: Any = ATTENTION[name]
    layer = layer_of(create)
    _require_fields(name, layer, fields)
    if variant is None:
        return create(**fields)
    if create is not layer:
        raise InputError(f"{name} is a variant already: leave variant={variant!r} out.")
    if variant not in layer.variants:
        raise unknown(f"variant of {name}", variant, layer.variants)
    return getattr(layer, variant)(**fields)


@checked
def require_name(name: str) -> None:
    """InputError unless `name` is a key of `ATTENTION`; of psa, which it could be."""
    if name == "psa":
        offered = [f"{name} ({meaning})" for name, meaning in _PSA.items()]
        raise InputError(
            f"'psa' could be any of three papers' layers, psanet, pyramid_squeeze and polarized, "
            f"or an article's simplification: use {' or '.join(offered)}."
        )
    if name not in ATTENTION:
        raise unknown("attention", name, ATTENTION, listed=LISTED)


def _require_fields(name: str, layer: Any, fields: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(layer)]
    own = [field for field in known if field not in ("parent", "name")]
    for field in fields:
        if field not in known:
            raise unknown(f"field of {name}", field, own)
    for field in required_fields(layer):
        if field not in fields:
            raise InputError(f"{name} needs its field {field}: add {field}=... .")
