"""Split attention of ResNeSt."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import InputError
from flaxattn.layers.conv import kaiming_fan_out
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class SplitAttention(Mechanism):
    """Split attention: a grouped convolution gives several splits, mixed channel by channel.

        u_1 ... u_R = relu(bn0(conv(x)))             conv in groups * R groups
        z   = mean_hw sum_r u_r                      (Eq. 1)
        a   = softmax_r(W2 relu(bn1(W1 z)))          (Eq. 3); the sigmoid if R = 1
        y   = sum_r a_r * u_r                        (Eq. 2)

    Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li, Smola, "ResNeSt:
    Split-Attention Networks", CVPRW 2022, arXiv:2004.08955.

    (N, H, W, C) -> (N, H', W', features) in x's dtype, with the call shape of `nn.Conv`. The
    convolution computes in `dtype` or x's, the weights of the splits in float32 or wider.
    Parameters: conv kernel (k, k, C / (groups * R), R * features); fc1 kernel
    (1, 1, features / groups, h) and bias; fc2 kernel (1, 1, h / groups, R * features) and bias; and
    bn0, bn1. The channels of conv and bn0 are radix-major, all of the first split before the
    second; those of fc2 are group-major.
    Sows the weights of the splits (N, R, features).

    It ends in a mixture of ReLUs, and with a `norm` it takes, in a residual block, the place of the
    normalisation and ReLU after the convolution too.

    Fields:
        features: channels of the output.
        kernel_size, strides, dilation: of the convolution.
        groups: the cardinality, of every layer; each split has so many groups. A split reads its
            own part of the channels of x, for they are groups of one convolution.
        radix: R, the number of splits.
        reduction: C * R / h; h is rounded down.
        min_hidden: h is at least so many.
        divisor: if given, h is rounded to a multiple of it instead, as timm's make_divisible.
        use_bias: a bias in the convolution. fc1 and fc2 have theirs.
        norm: makes the normalisations, or None for none; the ReLUs stay.

    Deviations: the average pool that ResNeSt puts beside a convolution instead of strides is its
    backbone's, and not in here.

    Raises InputError for groups that do not divide the channels or h, an even kernel, and a radix
    below one; with `norm`, in train mode, for a batch of one, for bn1 is over the batch alone.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    radix: int = 2
    reduction: int = 4
    min_hidden: int = 32
    divisor: int | None = None
    use_bias: bool = False
    norm: Callable[..., nn.Module] | None = BatchNorm

    role = "convolution"
    namings = {"official": (), "timm": ()}

    official = variant(
        "The authors' SplAtConv2d as their ResNeSt uses it: kernels from N(0, 2 / fan_out).",
        kernel_init=kaiming_fan_out,
    )
    timm = variant("timm's SplitAttn: the hidden width is rounded to a multiple of 8.", divisor=8)

    @property
    def activates(self) -> bool:
        """Whether it ends in a normalisation and a ReLU of its own."""
        return self.norm is not None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        hidden = self._hidden_width(x.shape[-1])
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        def normalise(z: Array, name: str, dtype: DTypeLike) -> Array:
            if self.norm is None:
                return z
            return self.norm(dtype=dtype, param_dtype=self.param_dtype, name=name)(z, train)

        conv = self.convolution(
            self.radix * self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            dilation=self.dilation,
            groups=self.groups * self.radix,
            use_bias=self.use_bias,
            dtype=dtype,
            name="conv",
        )
        splits = jnp.split(jax.nn.relu(normalise(conv(x), "bn0", dtype)), self.radix, axis=-1)
        logits = bottleneck(
            jnp.asarray(sum(average_pool(u) for u in splits)),
            hidden,
            self.radix * self.features,
            activation=lambda z: jax.nn.relu(normalise(z, "bn1", wide)),
            groups=self.groups,
            dtype=wide,
            **self.initialisers,
        )
        weights = self._weights(logits)
        self.sow("intermediates", "attention", weights)
        shares = jnp.split(weights[:, :, None, None, :], self.radix, axis=1)
        y = sum(a[:, 0] * u.astype(wide) for a, u in zip(shares, splits, strict=True))
        return jnp.asarray(y).astype(x.dtype)

    def _weights(self, logits: Array) -> Array:
        """The softmax over the splits, or the gate: (N, R * features) -> (N, R, features)."""
        if self.radix == 1:
            return jax.nn.sigmoid(logits)[:, None, :]
        by_group = logits.reshape(-1, self.groups, self.radix, self.features // self.groups)
        weights = jax.nn.softmax(by_group, axis=2)
        return weights.swapaxes(1, 2).reshape(-1, self.radix, self.features)

    def _hidden_width(self, channels: int) -> int:
        for field in ("features", "groups", "radix"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}={getattr(self, field)} is below one: use 1 or more.")
        if channels % (self.groups * self.radix):
            raise InputError(
                f"groups={self.groups} times radix={self.radix} must divide the {channels} input "
                f"channels: choose them so that the product is a divisor."
            )
        if self.features % self.groups:
            raise InputError(
                f"groups={self.groups} must divide the {self.features} features: use "
                f"groups={math.gcd(self.groups, self.features)} or another divisor."
            )
        hidden = reduced_features(
            channels * self.radix,
            self.reduction,
            divisor=self.divisor,
            at_least=self.min_hidden,
            round_limit=0.9,
        )
        if hidden % self.groups:
            raise InputError(
                f"groups={self.groups} must divide the {hidden} hidden channels that "
                f"reduction={self.reduction} and min_hidden={self.min_hidden} leave: use "
                f"groups={math.gcd(self.groups, hidden)}, or another reduction or min_hidden."
            )
        return hidden
