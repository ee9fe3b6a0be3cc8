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
from flaxattn.attention.shared_attention import apply_next
from flaxattn.conv import Conv, Initializer, kaiming_fan_out, torch_default
from flaxattn.errors import InputError, unknown
from flaxattn.models.placement import LayerFactory, Placement, namings, place
from flaxattn.norm import BatchNorm


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
            None. One that `activates` takes the place of the norm and ReLU after it too.
        attention: makes the layer `se` of the residual branch from (name=), or is one that several
            blocks share, or None.
        position: of `se`: "out", after the last norm before the add, or "mid", after the middle
            convolution, its norm and its ReLU.
        context: makes the layer after the add and its ReLU from (name=), or is one that several
            blocks share, or None.
    """

    width: int
    strides: int
    conv: LayerFactory
    norm: LayerFactory
    middle: LayerFactory | None = None
    attention: LayerFactory | nn.Module | None = None
    position: str = "out"
    context: LayerFactory | nn.Module | None = None

    expansion: ClassVar[int]

    def __call__(self, x: Array, train: bool = False) -> Array:
        y, _ = self.step(x, None, train)
        return y

    @nn.compact
    def step(self, x: Array, carry: Any, train: bool = False) -> tuple[Array, Any]:
        """y, and what a shared `se` carries from block to block: None before the first."""
        y = self.branch(x, train)
        if self.attention is not None and self.position == "out":
            layer = _in_slot(self.attention, "se")
            attended, carry = apply_next(layer, y, carry, train)
            y = _same_shape(layer, y, attended)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], 1, strides=self.strides, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x, train)
        y = jax.nn.relu(x + y)
        if self.context is not None:
            layer = _in_slot(self.context, "context")
            y = _same_shape(layer, y, layer(y, train))
        return y, carry

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
        if not getattr(layer, "activates", False):
            x = jax.nn.relu(self.norm(name=f"bn{index}")(x, train))
        if self.attention is not None and self.position == "mid":
            layer = _in_slot(self.attention, "se")
            x = _same_shape(layer, x, layer(x, train))
        return x


def _in_slot(layer: LayerFactory | nn.Module, name: str) -> nn.Module:
    """A block's layer in a slot: a shared one itself, else one of the block's own."""
    return layer if isinstance(layer, nn.Module) else layer(name=name)


def _as_the_input(*arrays: Any, **_: Any) -> list[Any]:
    """A layer's input and parameters in the input's dtype, as its `promote_dtype`."""
    return [array.astype(arrays[0].dtype) for array in arrays]


def _same_shape(layer: nn.Module, x: Array, y: Array) -> Array:
    """y, what `layer` answers for x, or InputError if its shape is not x's."""
    if y.shape != x.shape:
        raise InputError(
            f"{type(layer).__name__} answers {y.shape} for a map {x.shape}: in a block use one "
            f"that keeps the shape, such as output='scaled'."
        )
    return y


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
            convolution, and of its norm and ReLU too if the layer says that it `activates`, that
            is, ends in a normalisation and a ReLU of its own, as selective kernels do; context
            after the add and its ReLU, named `context`. With share=True all blocks of a stage that
            have the layer have the same one, and its weights stand beside the blocks: `layer3_se`
            or `layer3_context`, in torch's keys layer3_se.fc1.weight. A torch network whose
            blocks hold one and the same module lists its weights once for each block instead.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        kernel_init: of the convolutions; `fc` has torch's default, and zero biases.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train). Layers in the slots have their own.

    A dtype that the placement of a slot sets itself stays as it is.

    Raises InputError when constructed with an unknown block or stem, `stage_sizes` or a width
    below one, negative `num_classes`, or a slot `place` refuses; and when called, for a layer in
    the attention or context slot that changes the shape of its map.
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
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise InputError(
                f"stage_sizes={self.stage_sizes} makes no network: use a number of blocks, 1 or "
                f"more, for at least one stage."
            )
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
        slots = {"se": self.attention, middle: self.conv, "context": self.context}
        for name, placement in self._shared().items():
            del slots[name]
            stages = range(1, len(self.stage_sizes) + 1)
            slots |= {f"layer{stage}_{name}": placement for stage in stages}
        return namings(slots)

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
            for name, placement in self._shared().items():
                setattr(self, f"layer{stage}_{name}", self._factory(placement)())
            blocks = [self._block(stage, block, conv, norm) for block in range(size)]
            setattr(self, f"layer{stage}", blocks)
        if self.num_classes:
            self.fc = nn.Dense(
                self.num_classes,
                param_dtype=self.param_dtype,
                kernel_init=torch_default,
                promote_dtype=_as_the_input,
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
        carries = self.attention is not None and self.attention.carries
        maps = []
        for stage in range(1, len(self.stage_sizes) + 1):
            carry = None
            for block in getattr(self, f"layer{stage}"):
                if carries:
                    x, carry = block.step(x, carry, train)
                else:
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
            middle=layer("conv", self.conv),
            attention=layer("se", self.attention),
            position=self.attention.position if self.attention else "out",
            context=layer("context", self.context),
        )

    def _layer(
        self, stage: int, block: int, name: str, placement: Placement | None
    ) -> LayerFactory | nn.Module | None:
        """What a slot of one block gets: the stage's shared layer, a factory, or nothing."""
        if placement is None or not placement.covers(stage, block, self.stage_sizes[stage - 1]):
            return None
        if placement.share:
            return getattr(self, f"layer{stage}_{name}")
        return self._factory(placement)

    def _factory(self, placement: Placement) -> LayerFactory:
        return placement.with_defaults(dtype=self.dtype, param_dtype=self.param_dtype)

    def _shared(self) -> dict[str, Placement]:
        """The placements of which each stage has one layer, by their layer's name in a block."""
        slots = {"se": self.attention, "context": self.context}
        return {name: slot for name, slot in slots.items() if slot is not None and slot.share}
