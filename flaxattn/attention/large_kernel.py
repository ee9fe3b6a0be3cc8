"""Large kernel attention, as in VAN."""

from functools import partial

from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.layers.conv import kaiming_fan_in
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32


class LargeKernel(Mechanism):
    """Large kernel attention: x times what three convolutions make of a position's 23x23 pixels.

        u = depthwise5x5(x)
        a = W depthwise7x7(u, dilation 3)
        y = x * a

    a has any sign and no bound: there is no sigmoid.

    Guo, Lu, Liu, Cheng, Hu, "Visual Attention Network", Computational Visual Media 2023,
    arXiv:2202.09741.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the convolutions compute in `dtype` or x's, the
    product with x in float32 or wider. Parameters: conv0 kernel (5, 5, 1, C), conv_spatial kernel
    (7, 7, 1, C), conv1 kernel (1, 1, C, C), and their biases. Sows a.

    VAN's block has a 1x1 convolution and GELU before this layer, and a 1x1 convolution and a
    shortcut after it; they are not part of it.
    """

    role = "recalibrate"
    namings = {"official": ()}

    official = variant(
        """The authors' AttentionModule as their VAN starts it.

        That is N(0, 2 * groups / (k^2 * channels out)), here where as many channels come in also
        `kaiming_fan_in`.
        """,
        kernel_init=kaiming_fan_in,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        dtype = self.dtype or x.dtype
        conv = partial(self.convolution, features, dtype=dtype)
        y = conv(kernel_size=5, groups=features, name="conv0")(x)
        y = conv(kernel_size=7, dilation=3, groups=features, name="conv_spatial")(y)
        attention = conv(name="conv1")(y).astype(at_least_float32(dtype))
        self.sow("intermediates", "attention", attention)
        return rescale(x, attention)
