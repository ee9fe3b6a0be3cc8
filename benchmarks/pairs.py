"""What is timed against what: the same function in flaxattn and in PyTorch."""

from flaxattn.attention import (
    CBAM,
    DualAttention,
    EfficientChannel,
    SelectiveKernel,
    SelfAttention,
    SpatialAttention,
    SqueezeExcite,
)
from tests.torch_reference.cbam import CBAMArticle0
from tests.torch_reference.dual_attention import DualAttention as TorchDualAttention
from tests.torch_reference.efficient_channel import ECALayer
from tests.torch_reference.selective_kernel import SkNet
from tests.torch_reference.self_attention import SelfAttention as TorchSelfAttention
from tests.torch_reference.spatial_attention import SpatialAttentionArticle1
from tests.torch_reference.squeeze_excite import SEBlock

LAYERS = {
    "se": (SqueezeExcite, SEBlock),
    "eca": (EfficientChannel.official, lambda _: ECALayer()),
    "cbam": (CBAM.article_s0, CBAMArticle0),
    "spatial": (SpatialAttention, lambda _: SpatialAttentionArticle1(intended=True)),
    "self_attention": (SelfAttention, TorchSelfAttention),
    "sk": (
        lambda: SelectiveKernel.article_s2(128, softmax=True),
        lambda channels: SkNet(channels, softmax=True),
    ),
    "sca": (DualAttention, TorchDualAttention),
}

# Whole networks, of timm's names.
MODELS = (
    "resnet50",
    "seresnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "skresnext50_32x4d",
    "resnext50_32x4d",
)
