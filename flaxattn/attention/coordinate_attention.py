"""Coordinate attention."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import rescale, strip_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class CoordinateAttention(Mechanism):
    """Coordinate attention: each row and each column has a gate per channel.

        z_h = mean_w x, z_w = mean_h x                    (Eq. 4, 5)
        f   = hard_swish(norm(W1 [z_h; z_w]))             (Eq. 6)   one layer for rows and columns
        g_h = sigmoid(Wh f_h), g_w = sigmoid(Ww f_w)      (Eq. 7, 8)
        y   = x * g_h * g_w                               (Eq. 9)

    Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
    arXiv:2103.02907.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider.
    Parameters: conv1 kernel (1, 1, C, m), bn1 (m,), conv_h and conv_w kernels (1, 1, m, C), and the
    convolutions' biases. The norm's statistics are those of all N * (H + W) means.
    Sows both gates: {"height": (N, H, 1, C), "width": (N, 1, W, C)}.

    Fields:
        reduction: C / m; m is rounded down.
        minimum: of m.
        divisor: if given, m is C / reduction rounded to a multiple of it, at least one multiple.
        use_bias: biases in the three convolutions.
        skip: return x + y.
        dtype: of the gates' arithmetic, if wider than float32.
        norm: of the shared layer, called as norm(dtype=..., param_dtype=..., name="bn1")(f, train),
            or None.

    Raises InputError for a `reduction` below one, or where it leaves no channel.
    """

    reduction: int = 32
    minimum: int = 8
    divisor: int | None = None
    use_bias: bool = True
    skip: bool = False
    norm: Callable[..., nn.Module] | None = BatchNorm

    role = "recalibrate"
    namings = {
        "official": (),
        "timm": (),
        # The authors' MobileNetV2, whose weights they released, calls two layers otherwise.
        "mbv2_ca": (("conv2", "conv_h"), ("conv3", "conv_w")),
    }

    official = variant("The authors' CoordAtt with as many channels out as in; the default.")
    timm = variant(
        "timm's CoordAttn: no biases, m is C / 24 (2/3 of C / 16) to the nearest multiple of 8.",
        reduction=24,
        divisor=8,
        minimum=1,
        use_bias=False,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        hidden = reduced_features(
            features, self.reduction, divisor=self.divisor, at_least=self.minimum
        )
        dtype = at_least_float32(self.dtype or x.dtype)

        conv = partial(
            self.convolution, use_bias=self.use_bias, precision=lax.Precision.HIGHEST, dtype=dtype
        )

        rows, columns = strip_pool(x)
        f = conv(hidden, name="conv1")(jnp.concatenate([rows, jnp.swapaxes(columns, 1, 2)], axis=1))
        if self.norm is not None:
            f = self.norm(dtype=dtype, param_dtype=self.param_dtype, name="bn1")(f, train)
        rows, columns = jnp.split(jax.nn.hard_swish(f), [x.shape[1]], axis=1)
        height = jax.nn.sigmoid(conv(features, name="conv_h")(rows))
        width = jax.nn.sigmoid(conv(features, name="conv_w")(jnp.swapaxes(columns, 1, 2)))
        self.sow("intermediates", "attention", {"height": height, "width": width})
        y = rescale(x, height, width)
        return x + y if self.skip else y
