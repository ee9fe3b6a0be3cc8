"""Blocks of MobileNets, EfficientNets and their kin, with slots for attention."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention import CondConv
from flaxattn.attention.mechanism import LayerFactory
from flaxattn.layers.conv import Conv, Initializer
from flaxattn.layers.pooling import average_pool
from flaxattn.models.block_spec import BlockSpec
from flaxattn.models.placement import same_shape


class InvertedResidualBlock(nn.Module):
    """What all kinds of blocks have in common: everything but the residual branch.

        y = x + attention(branch(x))     where the row has `skip`, no strides, and as many features

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), features).

    Fields:
        spec: the block's row.
        activation: of the branch.
        norm: makes a normalisation from (name=), to be called with (x, train).
        padding: of convolutions with strides: "symmetric" or "same".
        attention: makes the layer `se` of the residual branch from (name=), or None.
        position: of `se`: "mid", after the depthwise or dense convolution, its norm and activation,
            or "out", after the last norm before the add.
        context: makes the layer after the add from (name=), or None.
        dilation: of the depthwise or dense convolution.
        drop_path: how likely the residual branch of a sample is left out in train mode.
        dtype, param_dtype: of the convolutions.
    """

    spec: BlockSpec
    activation: Callable[[Array], Array]
    norm: LayerFactory
    padding: str = "symmetric"
    attention: LayerFactory | None = None
    position: str = "mid"
    context: LayerFactory | None = None
    dilation: int = 1
    drop_path: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    # The submodules in their order; torchvision numbers them.
    layers: ClassVar[tuple[str, ...]]

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.branch(x, train)
        y = self._attend(y, train, "out")
        if self.spec.skip and self.spec.strides == 1 and x.shape == y.shape:
            if self.drop_path:
                drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))
                y = drop(y, deterministic=not train)
            y = x + y
        if self.context is not None:
            layer = self.context(name="context")
            y = same_shape(layer, y, layer(y, train))
        return y

    def branch(self, x: Array, train: bool) -> Array:
        """The residual branch up to its last norm."""
        raise NotImplementedError

    def _conv_norm(
        self,
        x: Array,
        name: str,
        norm: str,
        train: bool,
        *,
        activate: bool = True,
        routing: Array | None = None,
        **conv: Any,
    ) -> Array:
        """Convolution `name`, its norm and an activation."""
        y = self.norm(name=norm)(self._conv(x, name, train, routing, **conv), train)
        return self.activation(y) if activate else y

    def _conv(
        self,
        x: Array,
        name: str,
        train: bool,
        routing: Array | None,
        *,
        features: int,
        kernel_size: int | tuple[int, ...] = 1,
        group_size: int | None = None,
        **steps: int,
    ) -> Array:
        """A convolution, or one for each part of the channels, mixed by experts or not."""
        if isinstance(kernel_size, tuple):
            count = len(kernel_size)
            parts = jnp.split(x, np.cumsum(_split(x.shape[-1], count))[:-1], axis=-1)
            widths = _split(features, count)
            answers = [
                self._conv(
                    part,
                    f"{name}_{i}",
                    train,
                    routing,
                    features=widths[i],
                    kernel_size=kernel_size[i],
                    group_size=group_size,
                    **steps,
                )
                for i, part in enumerate(parts)
            ]
            return jnp.concatenate(answers, axis=-1)
        groups = features // group_size if group_size else 1
        same = self.padding == "same" and steps.get("strides", 1) > 1
        if same:
            x = pad_same(x, kernel_size, steps["strides"])
        fields: dict[str, Any] = {
            "padding": 0 if same else None,
            "groups": groups,
            "use_bias": False,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": fan_out_of(groups),
            "name": name,
            **steps,
        }
        if routing is None:
            return Conv(features, kernel_size, **fields)(x)
        layer = CondConv(features, kernel_size, num_experts=self.spec.experts, **fields)
        return layer(x, train, routing)

    def _main(self, x: Array, name: str, norm: str, train: bool, **fields: Any) -> Array:
        """The depthwise or dense convolution, which has the strides or the dilation."""
        fields |= {"strides": self.spec.strides, "dilation": self.dilation}
        return self._conv_norm(x, name, norm, train, kernel_size=self.spec.kernel_size, **fields)

    def _project(self, x: Array, name: str, norm: str, train: bool, **fields: Any) -> Array:
        """The last 1x1."""
        fields |= {"features": self.spec.features, "kernel_size": self.spec.project_size}
        activate = self.spec.project_activation
        return self._conv_norm(x, name, norm, train, activate=activate, **fields)

    def _attend(self, x: Array, train: bool, position: str) -> Array:
        if self.attention is None or self.position != position:
            return x
        layer = self.attention(name="se")
        return same_shape(layer, x, layer(x, train))

    def _inner(self, x: Array) -> int:
        return self.spec.inner_features(x.shape[-1])


def _split(channels: int, parts: int) -> list[int]:
    """Equal parts, but for the rest, which the first one has."""
    widths = [channels // parts] * parts
    widths[0] += channels % parts
    return widths


def pad_same(x: Array, kernel_size: int, strides: int) -> Array:
    """Zeros around (N, H, W, C) for a convolution without padding to answer ceil(H / strides) rows.

    TensorFlow's "SAME": as few as will do, and the odd one below and on the right.
    """
    totals = [
        max((math.ceil(side / strides) - 1) * strides + kernel_size - side, 0)
        for side in x.shape[1:3]
    ]
    return jnp.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in totals), (0, 0)))


def fan_out_of(groups: int) -> Initializer:
    """N(0, 2 / fan_out) with the fan-out of one of `groups`, as in TensorFlow's MobileNets."""
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


class ConvBlock(InvertedResidualBlock):
    """One dense convolution."""

    layers: ClassVar[tuple[str, ...]] = ("conv", "bn1")

    def branch(self, x: Array, train: bool) -> Array:
        x = self._main(x, "conv", "bn1", train, features=self.spec.features)
        return self._attend(x, train, "mid")


class SeparableBlock(InvertedResidualBlock):
    """Depthwise and pointwise: Howard et al. 2017, arXiv:1704.04861."""

    layers: ClassVar[tuple[str, ...]] = ("conv_dw", "bn1", "se", "conv_pw", "bn2")

    def branch(self, x: Array, train: bool) -> Array:
        x = self._main(x, "conv_dw", "bn1", train, features=x.shape[-1], group_size=1)
        x = self._attend(x, train, "mid")
        return self._project(x, "conv_pw", "bn2", train)


class InvertedBlock(InvertedResidualBlock):
    """Expansion, depthwise and projection: Sandler et al. 2018, arXiv:1801.04381, Fig. 4."""

    layers: ClassVar[tuple[str, ...]] = (
        "conv_pw",
        "bn1",
        "conv_dw",
        "bn2",
        "se",
        "conv_pwl",
        "bn3",
    )

    def branch(self, x: Array, train: bool) -> Array:
        spec, inner, routing = self.spec, self._inner(x), self._routing(x)
        x = self._conv_norm(
            x,
            "conv_pw",
            "bn1",
            train,
            features=inner,
            kernel_size=spec.expand_size,
            routing=routing,
        )
        x = self._main(x, "conv_dw", "bn2", train, features=inner, group_size=1, routing=routing)
        x = self._attend(x, train, "mid")
        return self._project(x, "conv_pwl", "bn3", train, routing=routing)

    def _routing(self, x: Array) -> Array | None:
        """How much of each expert a sample's convolutions have: (N, experts)."""
        if not self.spec.experts:
            return None
        pooled = average_pool(x)
        routing_fn = nn.Dense(
            self.spec.experts,
            dtype=pooled.dtype,
            param_dtype=self.param_dtype,
            precision=lax.Precision.HIGHEST,
            kernel_init=nn.initializers.variance_scaling(1 / 6, "fan_avg", "uniform"),
            name="routing_fn",
        )
        return jax.nn.sigmoid(routing_fn(pooled))


class EdgeBlock(InvertedResidualBlock):
    """One dense convolution that expands, and projection: Gupta and Tan 2019, EfficientNet-EdgeTPU.

    Tan and Le, arXiv:2104.00298, Fig. 2, call it fused MBConv.
    """

    layers: ClassVar[tuple[str, ...]] = ("conv_exp", "bn1", "se", "conv_pwl", "bn2")

    def branch(self, x: Array, train: bool) -> Array:
        inner, group_size = self._inner(x), self.spec.group_size
        x = self._main(x, "conv_exp", "bn1", train, features=inner, group_size=group_size)
        x = self._attend(x, train, "mid")
        return self._project(x, "conv_pwl", "bn2", train)


BLOCKS: dict[str, type[InvertedResidualBlock]] = {
    "conv": ConvBlock,
    "separable": SeparableBlock,
    "inverted": InvertedBlock,
    "edge": EdgeBlock,
}
