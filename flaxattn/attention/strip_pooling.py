"""Strip pooling, as a gate."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import rescale, strip_pool
from flaxattn.layers.precision import at_least_float32


class StripPooling(Mechanism):
    """Strip pooling module: a gate per position and channel from its row's and its column's means.

        u_h = norm(conv_kx1(mean_w x)), u_w = norm(conv_1xk(mean_h x))
        y   = x * sigmoid(W relu(u_h + u_w))

    Hou, Zhang, Cheng, Feng, "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
    CVPR 2020, arXiv:2003.13328.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the strips are float32 or wider, W multiplies in
    `dtype` or x's. The authors place it after the 3x3 convolution of a bottleneck.
    Parameters: conv1 kernel (k, 1, C, C), conv2 kernel (1, k, C, C), bn1 and bn2 (C,), conv3 kernel
    (1, 1, C, C) and bias. Sows the gate (N, H, W, C).

    Fields:
        kernel_size: k, odd.
        norm: of both strips, called as norm(dtype=..., param_dtype=..., name="bn1")(u, train).

    This is the authors' SPBlock with as many channels out as in. It returns the gate alone and
    their bottleneck multiplies. Their mixed pooling module, which pools strips too, is a head.

    Deviation: the bias starts at zero, where torch draws it from U(-1/sqrt(C), 1/sqrt(C)).

    Raises InputError for an even kernel.
    """

    kernel_size: int = 3
    norm: Callable[..., nn.Module] = BatchNorm

    role = "recalibrate"
    namings = {"official": ()}

    official = variant("The authors' SPBlock, multiplied; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        def strip(means: Array, kernel_size: tuple[int, int], index: int) -> Array:
            conv = self.convolution(
                features,
                kernel_size,
                use_bias=False,
                precision=lax.Precision.HIGHEST,
                dtype=wide,
                name=f"conv{index}",
            )
            norm = self.norm(dtype=wide, param_dtype=self.param_dtype, name=f"bn{index}")
            return norm(conv(means), train)

        rows, columns = strip_pool(x)
        rows = strip(rows, (self.kernel_size, 1), 1)
        columns = strip(columns, (1, self.kernel_size), 2)
        logits = self.convolution(features, dtype=dtype, name="conv3")(jax.nn.relu(rows + columns))
        gate = jax.nn.sigmoid(logits.astype(wide))
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
