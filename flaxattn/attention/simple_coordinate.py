"""timm's simplified coordinate attention."""

from functools import partial

import jax
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.layers.pooling import rescale, strip_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class SimpleCoordinateAttention(Mechanism):
    """Simplified coordinate attention: a gate per position and channel, from its row and column.

        z_h = mean_w x, z_w = mean_h x
        f_h = silu(W1 z_h), f_w = silu(W1 z_w)      one layer for rows and columns, no norm
        y   = x * sigmoid(Wh f_h + Ww f_w)

    Where the coordinate attention of Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile
    Network Design", CVPR 2021, arXiv:2103.02907, multiplies two gates, this one adds their logits.
    It is timm's SimpleCoordAttn and has no paper.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: fc1 kernel (1, 1, C, m), fc_h and fc_w kernels (1, 1, m, C), and their biases.
    Sows the gate (N, H, W, C).

    Fields:
        reduction: C / m; timm's default is 2/3 of C / 4.
        divisor: m is rounded to a multiple of it, at least one multiple; None rounds m down.
        use_bias: biases in the three layers.
        skip: return x + y.
        dtype: of the gate's arithmetic, if wider than float32.

    Raises InputError where `reduction` leaves no channel.
    """

    reduction: int = 6
    divisor: int | None = 8
    use_bias: bool = True
    skip: bool = False

    role = "recalibrate"
    namings = {
        "timm": (
            ("fc1", "fc1", "linear"),
            ("fc_h", "fc_h", "linear"),
            ("fc_w", "fc_w", "linear"),
        ),
    }

    timm = variant("timm's SimpleCoordAttn; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        hidden = reduced_features(features, self.reduction, divisor=self.divisor)
        dtype = at_least_float32(self.dtype or x.dtype)

        fc = partial(
            self.convolution, use_bias=self.use_bias, precision=lax.Precision.HIGHEST, dtype=dtype
        )

        rows, columns = strip_pool(x)
        shared = fc(hidden, name="fc1")
        height = fc(features, name="fc_h")(jax.nn.silu(shared(rows)))
        width = fc(features, name="fc_w")(jax.nn.silu(shared(columns)))
        gate = jax.nn.sigmoid(height + width)
        self.sow("intermediates", "attention", gate)
        y = rescale(x, gate)
        return x + y if self.skip else y
