"""Large separable kernel attention."""

from functools import partial

from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import kaiming_fan_in
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32

# k: lengths of the near and of the far kernels, and the dilation of the far ones.
# Together they see k = near + (far - 1) * dilation pixels along either axis.
KERNELS = {
    7: (3, 3, 2),
    11: (3, 5, 2),
    23: (5, 7, 3),
    35: (5, 11, 3),
    41: (5, 13, 3),
    53: (5, 17, 3),
}


class LargeSeparableKernel(Mechanism):
    """Large separable kernel attention: `LargeKernel` with each kernel as a row and a column.

        u = column_n(row_n(x))
        a = W column_m(row_m(u, dilation d), dilation d)
        y = x * a

    Rows and columns are depthwise; n, m and d follow from k as in `KERNELS`. Each channel has
    2 (n + m) weights where whole kernels have n^2 + m^2.

    Lau, Po, Rehman, "Large Separable Kernel Attention: Rethinking the Large Kernel Attention Design
    in CNN", Expert Systems with Applications 2024, arXiv:2309.01439.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the convolutions compute in `dtype` or x's, the
    product with x in float32 or wider. Parameters: conv0h kernel (1, n, 1, C), conv0v kernel
    (n, 1, 1, C), conv_spatial_h kernel (1, m, 1, C), conv_spatial_v kernel (m, 1, 1, C), conv1
    kernel (1, 1, C, C), and their biases. Sows a.

    Fields:
        kernel_size: k, pixels seen along either axis: 7, 11, 23, 35, 41 or 53. 23 is what
            `LargeKernel` sees.

    Raises InputError for any other `kernel_size`; the authors' code then makes a layer without
    convolutions, which fails when it is first called.
    """

    kernel_size: int = 23

    role = "recalibrate"
    namings = {"official": ()}

    official = variant(
        "The authors' LSKA as their networks start it, see `LargeKernel.official`.",
        kernel_init=kaiming_fan_in,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.kernel_size not in KERNELS:
            *sizes, last = KERNELS
            raise InputError(
                f"kernel_size={self.kernel_size} is none of those that the kernels add up to: use "
                f"{', '.join(map(str, sizes))} or {last}."
            )
        near, far, dilation = KERNELS[self.kernel_size]
        features = x.shape[-1]
        dtype = self.dtype or x.dtype
        conv = partial(self.convolution, features, dtype=dtype)
        depthwise = partial(conv, groups=features)
        y = depthwise(kernel_size=(1, near), name="conv0h")(x)
        y = depthwise(kernel_size=(near, 1), name="conv0v")(y)
        y = depthwise(kernel_size=(1, far), dilation=dilation, name="conv_spatial_h")(y)
        y = depthwise(kernel_size=(far, 1), dilation=dilation, name="conv_spatial_v")(y)
        attention = conv(name="conv1")(y).astype(at_least_float32(dtype))
        self.sow("intermediates", "attention", attention)
        return rescale(x, attention)
