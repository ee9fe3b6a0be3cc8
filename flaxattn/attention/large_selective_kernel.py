"""Large selective kernel attention."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.spatial_attention import channel_max, channel_mean
from flaxattn.errors import InputError
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32


class LargeSelectiveKernel(Mechanism):
    """Large selective kernel: each position picks the size of the surroundings it is judged by.

        u1 = depthwise5x5(x), u2 = depthwise7x7(u1, dilation 3)     (they see 5x5 and 23x23 pixels)
        v1 = W1 u1, v2 = W2 u2                                      (of C / 2 channels each)
        s  = sigmoid(conv7x7([mean_c [v1, v2]; max_c [v1, v2]]))    (a weight for either branch)
        a  = W (s_1 * v1 + s_2 * v2)
        y  = x * a

    a has any sign and no bound; only s is a gate.

    Li, Hou, Zheng, Cheng, Yang, Li, "Large Selective Kernel Network for Remote Sensing Object
    Detection", ICCV 2023, arXiv:2303.09030.

    (N, H, W, C) -> (N, H, W, C) in x's dtype, C even. The convolutions over C or C / 2 channels
    compute in `dtype` or x's, s and the products with it and with x in float32 or wider.
    Parameters: conv0 kernel (5, 5, 1, C), conv_spatial kernel (7, 7, 1, C), conv1 and conv2 kernels
    (1, 1, C, C / 2), conv_squeeze kernel (7, 7, 2, 2), conv kernel (1, 1, C / 2, C), and their
    biases. Sows {"branches": s (N, H, W, 2), "map": a (N, H, W, C)}.

    Deviation: the authors' whole network draws all kernels from N(0, 2 * groups / (k^2 * channels
    out)).

    Raises InputError for an odd number of channels.
    """

    role = "recalibrate"
    namings = {"official": ()}

    official = variant("The authors' LSKblock; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        if features % 2:
            raise InputError(
                f"{features} channels have no half for each of the two branches: use an even "
                f"number, such as {features + 1}."
            )
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        conv = partial(self.convolution, dtype=dtype)
        depthwise = partial(conv, features, groups=features)

        near = depthwise(kernel_size=5, name="conv0")(x)
        far = depthwise(kernel_size=7, dilation=3, name="conv_spatial")(near)
        near = conv(features // 2, name="conv1")(near)
        far = conv(features // 2, name="conv2")(far)

        both = jnp.concatenate([near, far], axis=-1)
        squeeze = conv(
            2, kernel_size=7, precision=lax.Precision.HIGHEST, dtype=wide, name="conv_squeeze"
        )
        pooled = jnp.concatenate([channel_mean(both), channel_max(both)], axis=-1)
        branches = jax.nn.sigmoid(squeeze(pooled))
        mixed = near.astype(wide) * branches[..., :1] + far.astype(wide) * branches[..., 1:]
        attention = conv(features, name="conv")(mixed).astype(wide)
        self.sow("intermediates", "attention", {"branches": branches, "map": attention})
        return rescale(x, attention)
