"""Style-based recalibration: a gate from each channel's own mean and standard deviation."""

from collections.abc import Callable
from dataclasses import KW_ONLY

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool, rescale, safe_sqrt, variance_pool
from flaxattn.layers.precision import at_least_float32

# torch draws the weights of a convolution over a channel's two statistics from U(-1/2^.5, 1/2^.5).
_PAIRS: Initializer = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2
)


class StyleRecalibration(Mechanism):
    """Style-based recalibration: a channel's gate is read from its own mean and deviation alone.

        t_c = [mean_hw x_c, sqrt(var_hw x_c + epsilon)]     style pooling
        z_c = w_c . t_c                                     style integration
        g   = sigmoid(norm(z))
        y   = g * x

    Lee, Kim, Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural Networks",
    ICCV 2019, arXiv:1903.10829.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: cfc (C, 2), the weights of mean and deviation; bn. Sows the gate (N, C).

    Fields:
        epsilon: under the root.
        dtype: of the gate's arithmetic, if wider than float32.
        kernel_init: of w; with zeros every gate starts at 1/2.
        norm: what normalises z over the batch, one value a sample and channel; called as
            norm(dtype=..., param_dtype=..., name="bn")(z, train).

    The variance is unbiased, as in the authors' code. Deviation: without an `epsilon` the gradient
    of a constant channel's deviation is 0, where torch returns NaN.

    Raises InputError for a map of one position, where the authors' code returns NaN, and, from
    BatchNorm, for one sample in train mode.
    """

    epsilon: float = 1e-5
    norm: Callable[..., nn.Module] = BatchNorm
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.zeros

    role = "recalibrate"
    namings = {
        "official": (),
        "changzy00": (("cfc.weight", "cfc", "n1n"),),
    }

    official = variant("The authors' SRMLayer; the default.")
    changzy00 = variant(
        "The port in changzy00/pytorch-attention: no epsilon, and w drawn as a convolution's.",
        epsilon=0.0,
        kernel_init=_PAIRS,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.epsilon < 0:
            raise InputError(f"epsilon={self.epsilon} is below zero: use 0 or more, such as 1e-5.")
        dtype = at_least_float32(self.dtype or x.dtype)
        cfc = self.param("cfc", self.kernel_init, (x.shape[-1], 2), self.param_dtype).astype(dtype)

        wide = x.astype(dtype)
        deviation = safe_sqrt(variance_pool(wide) + self.epsilon)
        logits = cfc[None, :, 0] * average_pool(wide) + cfc[None, :, 1] * deviation

        bn = self.norm(dtype=dtype, param_dtype=self.param_dtype, name="bn")
        gate = jax.nn.sigmoid(bn(logits, train))
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
