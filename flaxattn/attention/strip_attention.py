"""timm's strip attention."""

from functools import partial

import jax
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.layers.pooling import rescale, strip_pool
from flaxattn.layers.precision import at_least_float32


class StripAttention(Mechanism):
    """Strip attention: a gate per position and channel, the sum of its row's and column's logits.

        l_h = conv_kx1(mean_w x), l_w = conv_1xk(mean_h x)      depthwise
        y   = x * sigmoid(l_h + l_w)

    It is timm's StripAttn, which names no paper: next to the strip pooling of Hou, Zhang, Cheng,
    Feng, "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing", CVPR 2020,
    arXiv:2003.13328, it lacks the norms, the ReLU, and every mixture of channels.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: conv_h kernel (k, 1, 1, C), conv_w kernel (1, k, 1, C), and their biases.
    Sows the gate (N, H, W, C).

    Fields:
        kernel_size: k, odd, or None for no convolutions, and so no parameters.
        use_bias: biases in the convolutions.
        skip: return x + y.
        dtype: of the gate's arithmetic, if wider than float32.

    Raises InputError for an even kernel.
    """

    kernel_size: int | None = 3
    use_bias: bool = False
    skip: bool = False

    role = "recalibrate"
    namings = {"timm": ()}

    timm = variant("timm's StripAttn; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        dtype = at_least_float32(self.dtype or x.dtype)

        conv = partial(
            self.convolution,
            features,
            groups=features,
            use_bias=self.use_bias,
            precision=lax.Precision.HIGHEST,
            dtype=dtype,
        )

        rows, columns = strip_pool(x)
        if self.kernel_size is not None:
            rows = conv((self.kernel_size, 1), name="conv_h")(rows)
            columns = conv((1, self.kernel_size), name="conv_w")(columns)
        gate = jax.nn.sigmoid(rows + columns)
        self.sow("intermediates", "attention", gate)
        y = rescale(x, gate)
        return x + y if self.skip else y
