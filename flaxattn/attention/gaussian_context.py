"""Gaussian context transformer: channels far from the mean average are damped."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.linear_context import standardise
from flaxattn.attention.mechanism import variant
from flaxattn.attention.parts.channel_gate import ChannelGate
from flaxattn.errors import InputError
from flaxattn.layers.precision import at_least_float32


class GaussianContext(ChannelGate):
    """Gaussian context transformer: the nearer a channel's average to their mean, the more of it.

        z  = mean_hw x
        z' = (z - mean_c z) / (sqrt(var_c z) + epsilon)
        y  = exp(-z'^2 / (2 c^2)) * x

    Ruan et al., "Gaussian Context Transformer", CVPR 2021. Another paper has the same
    abbreviation, GCT: "Gated Channel Transformation for Visual Recognition", CVPR 2020; that one is
    GatedChannel.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: none with a fixed width (the paper's GCT-B0); theta (1,) with a learnt one (GCT-B1).

    Fields:
        width: c; or a pair (low, high), between which c is learnt:
            c = low + (high - low) sigmoid(theta), with theta = 0 at first.
        epsilon: added to the standard deviation.
        variance_epsilon: added to the variance under the root.
        dtype: of the gate's arithmetic, if wider than float32.

    No code of the authors is known. Equations, c = 2 and the learnt form are those of a published
    summary of the paper; of `learnable`, the range from 1 to 4 is what two ports agree on.

    Raises InputError for widths not above zero or out of order, and for epsilons that are below
    zero or both zero.
    """

    width: float | Sequence[float] = 2.0
    epsilon: float = 1e-5
    variance_epsilon: float = 0.0

    namings = {"changzy00": ()}

    learnable = variant("The paper's GCT-B1: a learnt width.", width=(1.0, 4.0))
    changzy00 = variant(
        "The port in changzy00/pytorch-attention: exp(-z'^2), its c = 2 a factor, not a width.",
        width=0.5**0.5,
        epsilon=0.0,
        variance_epsilon=1e-5,
    )

    @nn.compact
    def gate(self, pooled: Array) -> Array:
        """The channels' factors from their averages: (N, C) -> (N, C), within [0, 1]."""
        epsilons = self.epsilon, self.variance_epsilon
        if min(epsilons) < 0 or not sum(epsilons) > 0:
            raise InputError(
                f"epsilon={self.epsilon} and variance_epsilon={self.variance_epsilon} must not be "
                f"below zero, nor both be zero: use such as 1e-5 for one of them."
            )
        dtype = at_least_float32(self.dtype or pooled.dtype)
        normal = standardise(
            pooled.astype(dtype), epsilon=self.epsilon, variance_epsilon=self.variance_epsilon
        )
        return jnp.exp(-jnp.square(normal / self._width(dtype)) / 2)

    def _width(self, dtype: DTypeLike) -> Array:
        """c, of shape (1, 1)."""
        ends = tuple(self.width) if isinstance(self.width, Sequence) else (self.width, self.width)
        if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
            raise InputError(
                f"width={self.width} must be the width of a Gaussian: use a number above zero, "
                f"such as 2.0, or two in order, such as (1.0, 4.0)."
            )
        low, high = ends
        if not isinstance(self.width, Sequence):
            return jnp.full((1, 1), low, dtype)
        theta = self.param("theta", nn.initializers.zeros, (1,), self.param_dtype)
        return low + (high - low) * jax.nn.sigmoid(theta.astype(dtype))[None]
