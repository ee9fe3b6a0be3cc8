"""SimAM: a gate for each value, by how far it is from its channel's mean, without parameters."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.pooling import average_pool, rescale, variance_pool
from flaxattn.layers.precision import at_least_float32


class SimAM(Mechanism):
    """SimAM: each value is rescaled by how much it stands out from the rest of its channel.

        d   = (x - mean_hw x)^2
        e^* = 4 (v + lambda) / (d + 2 v + 2 lambda),  v = sum_hw d / (HW - 1)    (Eq. 5)
        y   = sigmoid(1 / e^*) * x                                               (Eq. 6)

    with 1 / e^* = d / (4 (v + lambda)) + 1/2: every gate is above sigmoid(1/2) = 0.62.

    Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
    Networks", ICML 2021.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: none. Sows the gate (N, H, W, C).

    Fields:
        e_lambda: lambda, above zero; it keeps a constant channel's gate at sigmoid(1/2).
        dtype: of the gate's arithmetic, if wider than float32.

    The authors' ResNets have it on the 3x3 convolution's output, before its norm. Deviation: the
    paper writes HW for HW - 1, its code does not.

    Raises InputError for a map of one position, where the authors' code returns NaN, and for a
    lambda that is not above zero.
    """

    e_lambda: float = 1e-4

    role = "recalibrate"
    namings = {"official": ()}

    official = variant("The authors' simam_module; the default.")
    official_imagenet = variant(
        "What the authors' ImageNet networks were trained with: lambda 0.1.", e_lambda=0.1
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if not self.e_lambda > 0:
            raise InputError(f"e_lambda={self.e_lambda} is not above zero: use 1e-4, or 0.1.")
        wide = x.astype(at_least_float32(self.dtype or x.dtype))
        squares = jnp.square(wide - average_pool(wide)[:, None, None, :])
        spread = 4 * (variance_pool(wide) + self.e_lambda)
        gate = jax.nn.sigmoid(squares / spread[:, None, None, :] + 0.5)
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
