"""The attention that architectures have in their blocks: one `Gate` each.

A gate gets the block's row, the channels inside the block, and its activation.
"""

import functools
from collections.abc import Callable

from jax import Array

from flaxattn.attention import GlobalContext, SqueezeExcite
from flaxattn.attention.mechanism import LayerFactory
from flaxattn.layers.widths import make_divisible
from flaxattn.models.block_spec import BlockSpec

Activation = Callable[[Array], Array]


def squeeze_input(spec: BlockSpec, channels: int, activation: Activation) -> LayerFactory:
    """EfficientNet's squeeze-and-excitation: `se` is a share of the block's input channels."""
    hidden = round(channels * (spec.se / spec.expansion))
    return functools.partial(
        SqueezeExcite.efficientnet, hidden_features=hidden, activation=activation
    )


def squeeze_inside(spec: BlockSpec, channels: int, _: Activation) -> LayerFactory:
    """MobileNetV3's: a share of the channels inside the block, in eights; ReLU, hard sigmoid."""
    hidden = make_divisible(channels * spec.se, 8)
    return functools.partial(SqueezeExcite.mobilenet_v3, hidden_features=hidden)


def squeeze_plain(spec: BlockSpec, channels: int, _: Activation) -> LayerFactory:
    """PP-LCNet's: MobileNetV3's with a hidden width that is not in eights."""
    return functools.partial(SqueezeExcite.mobilenet_v3, hidden_features=round(channels * spec.se))


def squeeze_as_block(spec: BlockSpec, channels: int, activation: Activation) -> LayerFactory:
    """timm's first MobileNetV3: PP-LCNet's with the block's activation."""
    return functools.partial(squeeze_plain(spec, channels, activation), activation=activation)


def squeeze_fbnet(spec: BlockSpec, channels: int, activation: Activation) -> LayerFactory:
    """FBNetV3's: `se` is a share of the block's input channels, in eights."""
    hidden = make_divisible(channels * (spec.se / spec.expansion), 8, round_limit=0.95)
    return functools.partial(
        SqueezeExcite.mobilenet_v3, hidden_features=hidden, activation=activation
    )


def pool_context(spec: BlockSpec, _: int, activation: Activation) -> LayerFactory:
    """timm's global context, of the width that squeeze-and-excitation has."""
    return functools.partial(
        GlobalContext.timm, reduction=round(spec.expansion / spec.se), activation=activation
    )
