"""Global second-order pooling: a channel gate read from the covariances of channels."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import kaiming_fan_out
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
    Raises InputError for a `hidden` or `strides` below one and, from BatchNorm, for one sample of
    one position in train mode.
    """

    hidden: int = 128
    strides: int = 1
    norm: Callable[..., nn.Module] = BatchNorm

    role = "recalibrate"
    namings = {"official": ()}

    official = variant(
        "The authors' channel attention: kernels from N(0, 2 / fan_out).",
        kernel_init=kaiming_fan_out,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.hidden < 1:
            raise InputError(f"hidden={self.hidden} is below one: use 1 or more, such as 128.")
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        norm = partial(self.norm, dtype=wide, param_dtype=self.param_dtype)
        exactly = partial(self.convolution, dtype=wide, precision=lax.Precision.HIGHEST)

        conv = self.convolution(self.hidden, strides=self.strides, dtype=dtype, name="conv_for_DR")
        u = jax.nn.relu(norm(name="bn_for_DR")(conv(jax.nn.relu(x)), train))
        u = u.reshape(u.shape[0], -1, self.hidden)
        u = u - jnp.mean(u, axis=1, keepdims=True)
        covariance = jnp.einsum("nmi,nmj->nji", u, u, precision=lax.Precision.HIGHEST) / u.shape[1]

        # Rows are the channels of what follows, and their entries its positions.
        rows = norm(name="row_bn")(covariance[:, :, None, :], train)
        row_conv = exactly(
            4 * self.hidden,
            kernel_size=(self.hidden, 1),
            padding=0,
            groups=self.hidden,
            name="row_conv_group",
        )
        logits = exactly(x.shape[-1], name="fc_adapt_channels")(row_conv(rows))
        gate = jax.nn.sigmoid(logits[:, 0, 0, :])
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
