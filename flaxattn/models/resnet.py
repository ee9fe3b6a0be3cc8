"""Residual networks with slots for attention."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.pooling import average_pool
from flaxattn.conv import Conv, Initializer, kaiming_fan_out, torch_default
from flaxattn.errors import InputError, unknown
from flaxattn.models.placement import LayerFactory, Placement, namings, place
from flaxattn.norm import BatchNorm
from flaxattn.precision import at_least_float32


class ResidualBlock(nn.Module):
    """What basic and bottleneck blocks have in common: everything but the residual branch.

        y = relu(shortcut(x) + attention(branch(x)))

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), width * expansion).

    Fields:
        width: channels of the middle convolution.
        strides: of the middle convolution, and of the shortcut.
        conv: makes a convolution from (features, kernel_size, strides=, name=).
        norm: makes a normalisation from (name=), to be called with (x, train).
        middle: makes the middle convolution's replacement from (features, strides=, name=), or
            None. One with a `norm` of its own takes the place of the norm and ReLU after it too.
        attention: makes the layer `se` of the residual branch from (name=), or None.
        position: of `se`: "out", after the last norm before the add, or "mid", after the middle
            convolution, its norm and its ReLU.
        context: makes the layer after the add and its ReLU from (name=), or None.
    """

    width: int
    strides: int
    conv: LayerFactory
    norm: LayerFactory
    middle: LayerFactory | None = None
    attention: LayerFactory | None = None
    position: str = "out"
    context: LayerFactory | None = None

    expansion: ClassVar[int]

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.branch(x, train)
        if self.attention is not None and self.position == "out":
            y = self.attention(name="se")(y, train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], 1, strides=self.strides, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x, train)
        y = jax.nn.relu(x + y)
        if self.context is not None:
            y = self.context(name="context")(y, train)
        return y

    def branch(self, x: Array, train: bool) -> Array:
        """The residual branch up to its last norm."""
        raise NotImplementedError

    def middle_layers(self, x: Array, train: bool, index: int) -> Array:
        """conv{index}, a 3x3 or its replacement, bn{index}, ReLU, and `se` if it is in the mid."""
        if self.middle is None:
            layer = self.conv(self.width, 3, strides=self.strides, name=f"conv{index}")
            x = layer(x)
        else:
            layer = self.middle(self.width, strides=self.strides, name=f"conv{index}")
            x = layer(x, train)
        if getattr(layer, "norm", None) is None:
            x = jax.nn.relu(self.norm(name=f"bn{index}")(x, train))
        if self.attention is not None and self.position == "mid":
            x = self.attention(name="se")(x, train)
        return x


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2016, Fig. 5 left); the first counts as the middle one.

    The first has the strides, and is what timm's skresnet18 and skresnet34 replace.
    """

    expansion: ClassVar[int] = 1

    def branch(self, x: Array, train: bool) -> Array:
        x = self.middle_layers(x, train, 1)
        x = self.conv(self.width, 3, name="conv2")(x)
        return self.norm(name="bn2")(x, train)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions (He et al. 2016, Fig. 5 right), the 3x3 in the middle.

    The 3x3 has the strides ("version 1.5", as in torchvision and timm); the paper's first 1x1 has.
    """

    expansion: ClassVar[int] = 4

    def branch(self, x: Array, train: bool) -> Array:
        x = jax.nn.relu(self.norm(name="bn1")(self.conv(self.width, 1, name="conv1")(x), train))
        x = self.middle_layers(x, train, 2)
        x = self.conv(self.width * self.expansion, 1, name="conv3")(x)
        return self.norm(name="bn3")(x, train)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Residual network, numerically and by its parameters' names torchvision's and timm's.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385; with the strides of "version 1.5" (see `Bottleneck`).

    images (N, H, W, 3) -> logits (N, num_classes), or pooled features if num_classes is 0, both
    float32 or wider. `features` answers the maps after each stage.

    Fields:
        stage_sizes: blocks in each stage.
        block: "basic", "bottleneck", or a subclass of `ResidualBlock`.
        num_classes: width of the last layer, `fc`; 0 leaves it out.
        width: channels of the stem, and of the first stage's middle convolutions; they double from
            stage to stage.
        stem: "imagenet", a 7x7 convolution and a max pool, each with strides 2; or "small", a 3x3
            convolution at full size for images of 32 pixels or so, as the paper's on CIFAR.
        attention, conv, context: the layers in the slots, in any form `placement.place` takes:
            attention in the residual branch, named `se` as in timm; conv instead of the middle
            convolution, and of its norm and ReLU too if the layer has a `norm` of its own; context
            after the add and its ReLU, named `context`.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        kernel_init: of the convolutions; `fc` has torch's default, and zero biases.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train). Layers in the slots have their own.

    A dtype that the placement of a slot sets itself stays as it is.

    Raises InputError when constructed with an unknown block or stem, a width below one,
    negative `num_classes`, or a slot `place` refuses.
    """

    stage_sizes: tuple[int, ...]
    block: str | type[ResidualBlock] = "bottleneck"
    num_classes: int = 1000
    width: int = 64
    stem: str = "imagenet"
    attention: Any = None
    conv: Any = None
    context: Any = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = kaiming_fan_out
    norm: Callable[..., nn.Module] = BatchNorm

    def __post_init__(self) -> None:
        self.stage_sizes = tuple(self.stage_sizes)
        if isinstance(self.block, str) and self.block not in BLOCKS:
            raise unknown("block", self.block, BLOCKS)
        if self.stem not in ("imagenet", "small"):
            raise unknown("stem", self.stem, ("imagenet", "small"))
        for field, least in (("width", 1), ("num_classes", 0)):
            value = getattr(self, field)
            if value < least:
                raise InputError(f"{field}={value} is below {least}: use {least} or more.")
        self.attention = place("attention", self.attention, self.stage_sizes)
        self.conv = place("conv", self.conv, self.stage_sizes)
        self.context = place("context", self.context, self.stage_sizes)
        super().__post_init__()

    @property
    def block_class(self) -> type[ResidualBlock]:
        return BLOCKS[self.block] if isinstance(self.block, str) else self.block

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `features`."""
        return tuple(
            self.width * 2**stage * self.block_class.expansion
            for stage in range(len(self.stage_sizes))
        )

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the image to one of each map of `features`, along either axis."""
        first = 4 if self.stem == "imagenet" else 1
        return tuple(first * 2**stage for stage in range(len(self.stage_sizes)))

    @property
    def namings(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """The renames of the slots' layers, by source name, for `flaxattn.weights`."""
        middle = "conv1" if issubclass(self.block_class, BasicBlock) else "conv2"
        return namings({"se": self.attention, middle: self.conv, "context": self.context})

    def setup(self) -> None:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: LayerFactory = functools.partial(
            Conv, use_bias=False, kernel_init=self.kernel_init, **dtypes
        )
        norm = functools.partial(self.norm, **dtypes)
        if self.stem == "imagenet":
            self.conv1 = conv(self.width, 7, strides=2)
        else:
            self.conv1 = conv(self.width, 3)
        self.bn1 = norm()
        for stage, size in enumerate(self.stage_sizes, start=1):
            blocks = [self._block(stage, block, conv, norm) for block in range(size)]
            setattr(self, f"layer{stage}", blocks)
        if self.num_classes:
            self.fc = nn.Dense(
                self.num_classes,
                dtype=at_least_float32(self.dtype or self.param_dtype),
                param_dtype=self.param_dtype,
                kernel_init=torch_default,
            )

    def __call__(self, images: Array, train: bool = False) -> Array:
        pooled = average_pool(self.features(images, train)[-1])
        return self.fc(pooled) if self.num_classes else pooled

    def features(self, images: Array, train: bool = False) -> list[Array]:
        """The map after each stage, `feature_strides` times smaller than the images, rounded up.

        Call it as `model.apply(variables, images, method="features")`.
        """
        x = jax.nn.relu(self.bn1(self.conv1(images), train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps = []
        for stage in range(1, len(self.stage_sizes) + 1):
            for block in getattr(self, f"layer{stage}"):
                x = block(x, train)
            maps.append(x)
        return maps

    def _block(self, stage: int, block: int, conv: LayerFactory, norm: LayerFactory) -> nn.Module:
        layer = functools.partial(self._layer, stage, block)
        return self.block_class(
            width=self.width * 2 ** (stage - 1),
            strides=2 if stage > 1 and block == 0 else 1,
            conv=conv,
            norm=norm,
            middle=layer(self.conv),
            attention=layer(self.attention),
            position=self.attention.position if self.attention else "out",
            context=layer(self.context),
        )

    def _layer(self, stage: int, block: int, placement: Placement | None) -> LayerFactory | None:
        """The factory of a slot's layer in one block, if the block has it."""
        if placement is None or not placement.covers(stage, block, self.stage_sizes[stage - 1]):
            return None
        return placement.with_defaults(dtype=self.dtype, param_dtype=self.param_dtype)
