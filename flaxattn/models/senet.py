"""The first squeeze-and-excitation networks, as converted from Caffe."""

from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import LayerFactory
from flaxattn.errors import InputError
from flaxattn.layers.fields import require_types
from flaxattn.models.placement import Slot
from flaxattn.models.residual_block import BasicBlock, Bottleneck, ResidualBlock
from flaxattn.models.resnet import Block, ResNet


class CaffeBasicBlock(BasicBlock):
    """A `BasicBlock` with a ReLU after its last norm, before attention and the add."""

    def branch(self, x: Array, train: bool) -> Array:
        return jax.nn.relu(super().branch(x, train))


class CaffeBottleneck(Bottleneck):
    """A `Bottleneck` whose first 1x1 convolution has the strides, as in He et al. 2016."""

    strides_first: ClassVar[bool] = True


class Layer0(nn.Module):
    """Convolutions (features, kernel_size, strides), each with its norm and a ReLU."""

    convs: tuple[tuple[int, int, int], ...]
    conv: LayerFactory
    norm: LayerFactory

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for i, (features, kernel_size, strides) in enumerate(self.convs, start=1):
            x = self.conv(features, kernel_size, strides=strides, name=f"conv{i}")(x)
            x = jax.nn.relu(self.norm(name=f"bn{i}")(x, train))
        return x


class SENet(ResNet, kw_only=True):
    """`ResNet` with the structure and the names of the authors' Caffe models, timm's legacy_*.

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507.

    Three things differ from `ResNet` with the same fields. The max pool of the stem has no padding
    and windows that may reach beyond the map, so that it rounds down where a ResNet's rounds up:
    images of 65 pixels give 33, then 16, not 17.
    Blocks are "caffe_basic", with a ReLU before attention, "caffe_bottleneck", with the strides in
    the first 1x1 convolution, or "bottleneck". And parameters are called as in these models:
    layer0 conv1, layer1_0 se_module, last_linear.

    By default squeeze-and-excitation stands in every block, and dropout is 0.2.

    Raises InputError for what `ResNet` refuses, for another stem_pool than "max", for other
    downsampling than by strides, and for another output_stride than 32.
    """

    block: Block | tuple[Block, ...] = "caffe_bottleneck"
    dropout: float = 0.2
    own_attention: Slot = "se"

    head_name: ClassVar[str] = "last_linear"
    attention_name: ClassVar[str] = "se_module"
    known_blocks: ClassVar[dict[str, type[ResidualBlock]]] = {
        "caffe_basic": CaffeBasicBlock,
        "caffe_bottleneck": CaffeBottleneck,
        "bottleneck": Bottleneck,
    }

    def __post_init__(self) -> None:
        require_types(self)
        supported = {"stem_pool": "max", "downsampling": "strides", "output_stride": 32}
        for field, only in supported.items():
            if getattr(self, field) != only:
                raise InputError(
                    f"SENet has no {field}={getattr(self, field)!r}: use {only!r}, or a ResNet."
                )
        super().__post_init__()

    def setup_stem(self) -> None:
        self.layer0 = Layer0(self._stem_convs(), self.make_conv, self.make_norm)

    def stem_layers(self, images: Array, train: bool) -> Array:
        return self.layer0(images, train)

    def pool_layers(self, x: Array, train: bool) -> Array:
        """3x3 windows with strides 2 from the first pixel on; the last may reach beyond the map."""
        beyond = tuple((0, 1 - size % 2) for size in x.shape[1:3])
        return nn.max_pool(x, (3, 3), (2, 2), beyond)


# Names as in timm.
_RESNET = {"block": "caffe_bottleneck"}
_RESNEXT = {"block": "bottleneck", "groups": 32, "group_width": 4}

SENETS: dict[str, dict[str, Any]] = {
    "legacy_senet154": {
        "block": "bottleneck",
        "stage_sizes": (3, 8, 36, 3),
        "stem": "deep",
        "stem_width": 64,
        "groups": 64,
        "group_width": 4,
        "first_reduction": 2,
        "shortcut": "3x3",
    },
    "legacy_seresnet18": {"block": "caffe_basic", "stage_sizes": (2, 2, 2, 2)},
    "legacy_seresnet34": {"block": "caffe_basic", "stage_sizes": (3, 4, 6, 3)},
    "legacy_seresnet50": {"stage_sizes": (3, 4, 6, 3), **_RESNET},
    "legacy_seresnet101": {"stage_sizes": (3, 4, 23, 3), **_RESNET},
    "legacy_seresnet152": {"stage_sizes": (3, 8, 36, 3), **_RESNET},
    "legacy_seresnext26_32x4d": {"stage_sizes": (2, 2, 2, 2), **_RESNEXT},
    "legacy_seresnext50_32x4d": {"stage_sizes": (3, 4, 6, 3), **_RESNEXT},
    "legacy_seresnext101_32x4d": {"stage_sizes": (3, 4, 23, 3), **_RESNEXT},
}
