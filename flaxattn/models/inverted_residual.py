"""Blocks of MobileNets, EfficientNets and their kin, with slots for attention."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory
from flaxattn.layers.conv import Conv, Initializer
from flaxattn.layers.pooling import average_pool
from flaxattn.models.block_spec import BlockSpec
from flaxattn.models.placement import in_slot

# The convolutions of each kind of block, and what they do; attention follows the middle one.
CONVS: dict[str, tuple[tuple[str, str], ...]] = {
    "conv": (("conv", "dense"),),
    "separable": (("conv_dw", "depthwise"), ("conv_pw", "project")),
    "inverted": (("conv_pw", "expand"), ("conv_dw", "depthwise"), ("conv_pwl", "project")),
    "edge": (("conv_exp", "dense"), ("conv_pwl", "project")),
}
MIDDLE = ("dense", "depthwise")


class InvertedResidualBlock(nn.Module):
    """A block of any kind of `BlockSpec`.

        y = x + attention(branch(x))     where the row has `skip`, no strides, and as many features

    (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), features).

    Fields:
        spec: the block's row.
        activation: of the branch.
        norm: makes a normalisation from (name=), to be called with (x, train).
        padding: of convolutions with strides: "symmetric" or "same".
        expert_conv: makes a convolution with the row's `experts` from (features, num_experts=,
            name=, and the fields of `Conv`), to be called with (x, train, routing).
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
    expert_conv: LayerFactory | None = None
    attention: LayerFactory | None = None
    position: str = "mid"
    context: LayerFactory | None = None
    dilation: int = 1
    drop_path: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self._branch(x, train)
        if self.attention is not None and self.position == "out":
            y = in_slot(self.attention, "se", y, train)
        if self.spec.skip and self.spec.strides == 1 and x.shape == y.shape:
            if self.drop_path:
                drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))
                y = drop(y, deterministic=not train)
            y = x + y
        return y if self.context is None else in_slot(self.context, "context", y, train)

    def _branch(self, x: Array, train: bool) -> Array:
        """The residual branch up to its last norm."""
        spec = self.spec
        routing = self._routing(x) if spec.experts else None
        wide = {"features": spec.inner_features(x.shape[-1])}
        steps = {"strides": spec.strides, "dilation": self.dilation}
        middle = {**wide, **steps, "kernel_size": spec.kernel_size}
        fields: dict[str, dict[str, Any]] = {
            "expand": {**wide, "kernel_size": spec.expand_size},
            "depthwise": {**middle, "group_size": 1},
            "dense": {**middle, "group_size": spec.group_size},
            "project": {"features": spec.features, "kernel_size": spec.project_size},
        }
        for index, (name, task) in enumerate(CONVS[spec.kind], start=1):
            x = self._conv(x, name, train, routing, **fields[task])
            x = self.norm(name=f"bn{index}")(x, train)
            if task != "project" or spec.project_activation:
                x = self.activation(x)
            if task in MIDDLE and self.attention is not None and self.position == "mid":
                x = in_slot(self.attention, "se", x, train)
        return x

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
            outputs = [
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
            return jnp.concatenate(outputs, axis=-1)
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
        if routing is None or self.expert_conv is None:
            return Conv(features, kernel_size, **fields)(x)
        fields["kernel_size"] = kernel_size
        layer = self.expert_conv(features, num_experts=self.spec.experts, **fields)
        return layer(x, train, routing)

    def _routing(self, x: Array) -> Array:
        """How much of each expert a sample's convolutions have: (N, experts)."""
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


def _split(channels: int, parts: int) -> list[int]:
    """Equal parts, but for the rest, which the first one has."""
    widths = [channels // parts] * parts
    widths[0] += channels % parts
    return widths


def pad_same(x: Array, kernel_size: int, strides: int) -> Array:
    """Zeros around (N, H, W, C), so that a convolution without padding has ceil(H / strides) rows.

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
