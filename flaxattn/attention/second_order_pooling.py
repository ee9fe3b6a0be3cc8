"""Global second-order pooling: a channel gate read from the covariances of channels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.maps import require_maps
from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv, Initializer, kaiming_fan_out, torch_default
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32


class SecondOrderPooling(Mechanism):
    """Global second-order pooling: a gate for each channel from all covariances of a narrow copy.

        u = relu(bn_for_DR(conv_for_DR(relu(x))))                d channels
        S = mean_hw (u - mean_hw u)(u - mean_hw u)^T             (d, d)
        v = row_conv_group(row_bn(S))                            four numbers from each row of S
        y = sigmoid(fc_adapt_channels(v)) * x

    Gao, Xie, Wang, Li, "Global Second-order Pooling Convolutional Networks", CVPR 2019,
    arXiv:1811.12006; the channel half, the authors' default.

    (N, H, W, C) -> (N, H, W, C) in x's dtype. conv_for_DR computes in `dtype` or x's, the
    covariances and all that follows in float32 or wider.
    Parameters: conv_for_DR kernel (1, 1, C, d), row_conv_group kernel (d, 1, 1, 4 d) and
    fc_adapt_channels kernel (1, 1, 4 d, C), with biases; bn_for_DR and row_bn, of d channels each.
    Sows the gate (N, C).

    Fields:
        hidden: d, 128 in the authors' networks.
        strides: of conv_for_DR; theirs has 2 in the first stage and 1 after it.
        norm: of both norms, such as BatchNorm; called as
            norm(dtype=..., param_dtype=..., name=...)(x, train).

    Their position half is not here: its released code centres by the number of positions where it
    means that of the channels.
    Deviation: biases start at zero, where torch draws them from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Raises InputError for a `hidden` or `strides` below one and, from BatchNorm, for one sample of
    one position in train mode.
    """

    hidden: int = 128
    strides: int = 1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_default
    bias_init: Initializer = nn.initializers.zeros
    norm: Callable[..., nn.Module] = BatchNorm

    role = "recalibrate"
    variants = ("official",)
    namings = {"official": ()}

    official = variant(
        "The authors' channel attention: kernels from N(0, 2 / fan_out).",
        kernel_init=kaiming_fan_out,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        require_maps(x)
        if self.hidden < 1:
            raise InputError(f"hidden={self.hidden} is below one: use 1 or more, such as 128.")
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        def conv(features: int, name: str, dtype: DTypeLike, **fields) -> Conv:
            return self.convolution(features, dtype=dtype, name=name, **fields)

        def norm(name: str) -> nn.Module:
            return self.norm(dtype=wide, param_dtype=self.param_dtype, name=name)

        u = conv(self.hidden, "conv_for_DR", dtype, strides=self.strides)(jax.nn.relu(x))
        u = jax.nn.relu(norm("bn_for_DR")(u, train))
        u = u.reshape(u.shape[0], -1, self.hidden)
        u = u - jnp.mean(u, axis=1, keepdims=True)
        exact = lax.Precision.HIGHEST
        covariance = jnp.einsum("nmi,nmj->nji", u, u, precision=exact) / u.shape[1]

        # Rows are the channels of what follows, and their entries its positions.
        rows = norm("row_bn")(covariance[:, :, None, :], train)
        row_conv = conv(
            4 * self.hidden,
            "row_conv_group",
            wide,
            kernel_size=(self.hidden, 1),
            padding=0,
            groups=self.hidden,
            precision=exact,
        )
        logits = conv(x.shape[-1], "fc_adapt_channels", wide, precision=exact)(row_conv(rows))
        gate = jax.nn.sigmoid(logits[:, 0, 0, :])
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
