"""Residual blocks with slots for attention."""

from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import LayerFactory, declared
from flaxattn.attention.shared_attention import apply_next
from flaxattn.errors import InputError
from flaxattn.models.downsampling import Downsampling, dense_average_pool, whole_average_pool
from flaxattn.models.placement import in_slot, same_shape

SHORTCUTS = ("1x1", "3x3", "average")


class ResidualBlock(nn.Module):
    """What basic and bottleneck blocks have in common: everything but the residual branch.

        y = relu(shortcut(x) + attention(branch(x)))

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), width * expansion).

    Fields:
        width: channels of the output, divided by the `expansion`.
        strides: of the middle convolution, and of the shortcut.
        conv: makes a convolution from (features, kernel_size, strides=, dilation=, groups=, name=).
        norm: makes a normalisation from (name=), to be called with (x, train).
        middle: makes the middle convolution's replacement from (features, strides=, name=), or
            None. One that `activates` takes the place of the norm and ReLU after it too.
        attention: makes the layer of the residual branch from (name=), or is one that several
            blocks share, or None.
        position: of that layer: "out", after the last norm before the add, or "mid", after the
            middle convolution, its norm, its ReLU and the pool that may follow.
        attention_name: of that layer.
        context: makes the layer after the add and its ReLU from (name=), or is one that several
            blocks share, or None.
        groups, group_width: of the middle convolution, and how many channels each group has per 64
            of `width`: 32 and 4 are ResNeXt 32x4d (arXiv:1611.05431), 1 and 128 are Wide ResNet
            (arXiv:1605.07146).
        first_reduction: how many times narrower a bottleneck's first convolution is than the
            middle one.
        pruned: channels of a bottleneck's three convolutions, where they do not follow from these.
        first_dilation: of the middle convolution; `middle` has its own.
        dilation: of a basic block's second convolution, and of the stage's next blocks.
        shortcut: where the shape changes: "1x1", a convolution with the strides; "average", an
            average pool before it instead of strides (ResNet-D, arXiv:1812.01187); or "3x3" where
            there are strides, and 1x1 else (SENet-154).
        downsampling: pools around the middle convolution instead of its strides.
        drop_path: how likely the residual branch of a sample is left out in train mode.
        zero_init_last: start the residual branch's last norm at zero.

    Raises InputError where branch and shortcut have maps of different sizes.
    """

    width: int
    strides: int
    conv: LayerFactory
    norm: LayerFactory
    middle: LayerFactory | None = None
    attention: LayerFactory | nn.Module | None = None
    position: str = "out"
    attention_name: str = "se"
    context: LayerFactory | nn.Module | None = None
    groups: int = 1
    group_width: int = 64
    first_reduction: int = 1
    pruned: tuple[int, int, int] | None = None
    first_dilation: int = 1
    dilation: int = 1
    shortcut: str = "1x1"
    downsampling: Downsampling = Downsampling()
    drop_path: float = 0.0
    zero_init_last: bool = False

    expansion: ClassVar[int]
    # The numbers of the middle convolution, and of the others.
    middle_index: ClassVar[int]
    other_indices: ClassVar[tuple[int, ...]]

    def __call__(self, x: Array, train: bool = False) -> Array:
        y, _ = self.step(x, None, train)
        return y

    @nn.compact
    def step(self, x: Array, carry: Any, train: bool = False) -> tuple[Array, Any]:
        """y, and what a shared attention layer carries from block to block: None at first."""
        y = self.branch(x, train)
        if self.attention is not None and self.position == "out":
            layer = self.attention
            if not isinstance(layer, nn.Module):
                layer = layer(name=self.attention_name)
            attended, carry = apply_next(layer, y, carry, train)
            y = same_shape(layer, y, attended)
        y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.shortcut_layers(x, y.shape[-1], train)
        if x.shape != y.shape:
            raise InputError(
                f"a map {y.shape} cannot be added to its shortcut's {x.shape}: their pools round "
                f"odd sizes differently; use images whose maps have even sizes in all stages."
            )
        y = jax.nn.relu(x + y)
        if self.context is not None:
            y = in_slot(self.context, "context", y, train)
        return y, carry

    def branch(self, x: Array, train: bool) -> Array:
        """The residual branch up to its last norm."""
        raise NotImplementedError

    def shortcut_layers(self, x: Array, features: int, train: bool) -> Array:
        """The shortcut where it is not x itself."""
        if self.shortcut == "average":
            dense = self.dilation > 1
            x = dense_average_pool(x) if dense else whole_average_pool(x, self.strides)
            x = self.conv(features, 1, name="downsample_1")(x)
            return self.norm(name="downsample_2")(x, train)
        size = 3 if self.shortcut == "3x3" and (self.strides > 1 or self.dilation > 1) else 1
        steps = {"strides": self.strides, "dilation": self.first_dilation}
        x = self.conv(features, size, **steps, name="downsample_0")(x)
        return self.norm(name="downsample_1")(x, train)

    def middle_layers(self, x: Array, train: bool, strides: int) -> Array:
        """The middle convolution or its replacement, norm, ReLU, and attention in the mid."""
        pooled = strides > 1 or self.first_dilation != self.dilation
        before, after, _ = self.downsampling if pooled else Downsampling()
        if before is not None:
            x = before(x, strides)
        conv_strides = 1 if before or after else strides
        name = f"conv{self.middle_index}"
        if self.middle is None:
            steps = {"strides": conv_strides, "dilation": self.first_dilation}
            layer = self.conv(self.middle_width, 3, groups=self.groups, **steps, name=name)
            x = layer(x)
        else:
            layer = self.middle(self.middle_width, strides=conv_strides, name=name)
            x = layer(x, train)
        if not declared(layer, "activates"):
            x = jax.nn.relu(self.norm(name=f"bn{self.middle_index}")(x, train))
        if after is not None:
            x = after(x, strides)
        if self.attention is not None and self.position == "mid":
            x = in_slot(self.attention, self.attention_name, x, train)
        return x

    @property
    def middle_width(self) -> int:
        """Channels of the middle convolution."""
        if self.pruned is not None:
            return self.pruned[1]
        return self.width * self.group_width // 64 * self.groups

    def last_norm(self, name: str) -> nn.Module:
        """The residual branch's last normalisation."""
        return self.norm(
            name=name, **{"scale_init": nn.initializers.zeros} if self.zero_init_last else {}
        )


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2016, Fig. 5 left); the first counts as the middle one.

    The first has the strides, and is what timm's skresnet18 and skresnet34 replace.
    """

    expansion: ClassVar[int] = 1
    middle_index: ClassVar[int] = 1
    other_indices: ClassVar[tuple[int, ...]] = (2,)

    def branch(self, x: Array, train: bool) -> Array:
        x = self.middle_layers(x, train, self.strides)
        x = self.conv(self.width, 3, dilation=self.dilation, name="conv2")(x)
        return self.last_norm("bn2")(x, train)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions (He et al. 2016, Fig. 5 right), the 3x3 in the middle.

    The 3x3 has the strides ("version 1.5", as in torchvision and timm); the paper's first 1x1 has.
    With groups it is ResNeXt's block (Xie et al. 2017, arXiv:1611.05431, Fig. 3c).
    """

    expansion: ClassVar[int] = 4
    middle_index: ClassVar[int] = 2
    other_indices: ClassVar[tuple[int, ...]] = (1, 3)
    # Whether the first convolution has the strides.
    strides_first: ClassVar[bool] = False

    def branch(self, x: Array, train: bool) -> Array:
        middle, last = self.middle_width, self.width * self.expansion
        first, _, last = self.pruned or (middle // self.first_reduction, middle, last)
        strides, middle_strides = (self.strides, 1) if self.strides_first else (1, self.strides)
        x = self.conv(first, 1, strides=strides, name="conv1")(x)
        x = jax.nn.relu(self.norm(name="bn1")(x, train))
        x = self.middle_layers(x, train, middle_strides)
        x = self.conv(last, 1, name="conv3")(x)
        return self.last_norm("bn3")(x, train)


BLOCKS: dict[str, type[ResidualBlock]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
