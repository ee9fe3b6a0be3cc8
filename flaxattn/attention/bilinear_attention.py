"""Grouped bilinear attentional transform: rows and columns of blocks mixed, BAT."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Part, variant
from flaxattn.attention.parts.blocks import require_divisor
from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv, kaiming_fan_out
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import maximum
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class BilinearAttention(Mechanism):
    """BAT block: mixes the rows, then the columns of a coarse grid laid over the map, and adds x.

        f_n(z) = relu(norm(conv1x1(z)))                     n-th of four such layers
        u = f_1(x),  r = max over each row of blocks of f_2(u),  c = over each column of blocks
        P = sigmoid(conv_p(r)) with rows summing to one     (s, s) for each group
        Q = sigmoid(conv_q(c)) with columns summing to one
        y = x + dropout(f_4(f_3(P u Q)))                    P, Q between blocks, in each group

    Chi, Yuan, Mu, Wang, "Non-Local Neural Networks With Grouped Bilinear Attentional Transforms",
    CVPR 2020.

    (N, H, W, C) -> (N, H, W, C) in x's dtype. Convolutions take `dtype` or x's; P and Q are
    float32 or wider, and so are the sums of their products with u, which multiply in the platform's
    default precision (see `Conv`).
    Parameters, of h reduced channels: conv1, ba/conv1, ba/conv2, conv2, each a 1x1 `conv` and its
    `bn`, to h, groups, h and C channels; ba/conv_p kernel (s, 1, groups, s^2 * groups) and
    ba/conv_q kernel (1, s, groups, s^2 * groups), with biases.
    Sows both: {"columns": Q, "rows": P}, each (N, groups, s, s); P's rows sum to one, Q's columns.

    Fields:
        reduction: C / h, rounded down.
        block_size: s, the blocks along each side of the map; it must divide height and width.
        groups: groups of channels that have a P and a Q of their own, a divisor of h.
        divisor: if given, h is C / reduction rounded to a multiple of it as timm rounds.
        drop_rate: with `train`, the probability of zeroing a whole channel of a sample before the
            sum; the others are scaled by 1 / (1 - drop_rate). Needs an rng "dropout".
        use_bias: biases in the four 1x1 convolutions, beside those of norm.
        norm: what normalises behind each 1x1 convolution.

    Deviations: the authors' code takes square maps only, for it sizes Q by the height.

    Raises InputError where `block_size` does not divide the map or `groups` h, where `reduction`
    leaves no channel, and for a `drop_rate` outside [0, 1].
    """

    reduction: int = 2
    block_size: int = 7
    groups: int = 4
    divisor: int | None = None
    drop_rate: float = 0.0
    use_bias: bool = True
    norm: Callable[..., nn.Module] = BatchNorm

    role = "context"
    namings = {
        "timm": (),
        "official": (
            ("batransform", "ba"),
            ("conv1.0", "conv1.conv"),
            ("conv1.1", "conv1.bn"),
            ("conv2.0", "conv2.conv"),
            ("conv2.1", "conv2.bn"),
        ),
    }

    official = variant(
        "The authors' code as their ResNet-50 to 152 use it: dropout, Kaiming's start.",
        drop_rate=0.2,
        kernel_init=kaiming_fan_out,
    )
    timm = variant(
        "timm's BatNonLocalAttn: a quarter of the channels, two groups, no 1x1 biases, dropout.",
        reduction=4,
        groups=2,
        divisor=8,
        drop_rate=0.2,
        use_bias=False,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if not 0 <= self.drop_rate <= 1:
            raise InputError(f"drop_rate={self.drop_rate} must be a probability: use 0 to 1.")
        _, height, width, features = x.shape
        require_divisor("block_size", self.block_size, height, width)
        hidden = reduced_features(features, self.reduction, divisor=self.divisor, round_limit=0.9)
        if self.groups < 1 or hidden % self.groups:
            raise InputError(
                f"groups={self.groups} must divide the {hidden} channels that reduction="
                f"{self.reduction} leaves: use a divisor of {hidden}."
            )
        fields: dict[str, Any] = {
            "dtype": self.dtype or x.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        layer: dict[str, Any] = {"use_bias": self.use_bias, "norm": self.norm, **fields}
        u = _ConvNormReLU(hidden, name="conv1", **layer)(x, train)
        u = _Transform(self.block_size, self.groups, layer, fields, name="ba")(u, train)
        u = _ConvNormReLU(features, name="conv2", **layer)(u, train)
        u = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2))(u, deterministic=not train)
        return x + u.astype(x.dtype)


class _ConvNormReLU(Part):
    """1x1 convolution, normalisation, ReLU."""

    features: int
    use_bias: bool
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.convolution(self.features, use_bias=self.use_bias, dtype=self.dtype, name="conv")(
            x
        )
        return jax.nn.relu(self.norm(param_dtype=self.param_dtype, name="bn")(y, train))


class _Transform(nn.Module):
    """f_3(P u Q) of u; `layer` and `fields` are those of its convolutions with norm and without."""

    block_size: int
    groups: int
    layer: dict[str, Any]
    fields: dict[str, Any]

    @nn.compact
    def __call__(self, u: Array, train: bool) -> Array:
        batch, height, width, features = u.shape
        size, groups = self.block_size, self.groups
        wide = at_least_float32(u.dtype)
        guide = _ConvNormReLU(groups, name="conv1", **self.layer)(u, train)
        by_row = maximum(guide.reshape(batch, size, -1, groups), 2)
        # Within the rows first: a shared maximum's gradient goes to the first, row by row.
        within_rows = maximum(guide.reshape(batch, height, size, -1, groups), 3)
        by_column = maximum(within_rows, 1).reshape(batch, 1, size, groups)

        def weights(maxima: Array, name: str, axis: int) -> Array:
            conv = Conv(
                size * size * groups,
                kernel_size=maxima.shape[1:3],
                padding=0,
                name=name,
                **self.fields,
            )
            logits = conv(maxima).reshape(batch, groups, size, size).astype(wide)
            # sigmoid(z) over its sum, which could be zero.
            return jax.nn.softmax(jax.nn.log_sigmoid(logits), axis=axis)

        rows = weights(by_row, "conv_p", -1)
        columns = weights(by_column, "conv_q", -2)
        self.sow("intermediates", "attention", {"columns": columns, "rows": rows})

        # Position (i, a) of a side is number a of block i.
        u = u.astype(wide).reshape(
            batch, size, height // size, size, width // size, groups, features // groups
        )
        u = jnp.einsum("ngij,njakbgc->niakbgc", rows, u)
        u = jnp.einsum("niakbgc,ngkl->nialbgc", u, columns)
        u = u.reshape(batch, height, width, features).astype(self.fields["dtype"])
        return _ConvNormReLU(features, name="conv2", **self.layer)(u, train)
