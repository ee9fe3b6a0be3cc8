"""Linear context transform: gates from averages that are normalised within groups of channels."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import variant
from flaxattn.attention.parts.channel_gate import ChannelGate
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.pooling import safe_sqrt
from flaxattn.layers.precision import at_least_float32


def standardise(
    z: Array, *, groups: int = 1, variance_epsilon: float = 0.0, epsilon: float = 0.0
) -> Array:
    """(z - mean) / (sqrt(var + variance_epsilon) + epsilon) within each group: (N, C) -> (N, C).

    The variance is biased. Where it is zero its root's gradient is taken to be zero.

    One of the epsilons must be above zero. Raises InputError for groups that do not divide C.
    """
    features = z.shape[-1]
    if groups < 1 or features % groups:
        divisors = [d for d in range(1, features + 1) if features % d == 0]
        raise InputError(
            f"groups={groups} does not divide {features} channels: use one of "
            f"{', '.join(map(str, divisors))}."
        )
    grouped = z.reshape(z.shape[0], groups, -1)
    centred = grouped - jnp.mean(grouped, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + variance_epsilon
    return (centred / (safe_sqrt(variance) + epsilon)).reshape(z.shape)


class LinearContext(ChannelGate):
    """Linear context transform: each channel's gate is a line through its normalised average.

        z  = mean_hw x
        z' = (z - mean z) / sqrt(var z + epsilon)     within each group of C / groups channels
        y  = sigmoid(w * z' + b) * x                  w, b: one a channel

    Ruan, Wen, Zheng, Zheng, "Linear Context Transform Block", AAAI 2020, arXiv:1909.03834.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: w, b (C,).

    Fields:
        groups: of channels that are normalised together. With one channel a group z' is 0 and the
            gate sigmoid(b), whatever x is.
        epsilon: under the root.
        dtype: of the gate's arithmetic, if wider than float32.
        scale_init, bias_init: of w and b.

    No code of the authors is known. This is the function of changzy00/pytorch-attention, whose
    initial w = 1, b = 0 and eight groups could not be held against the paper. There is another
    port that starts from w = 0, b = 1, for which set the two initialisers.

    Raises InputError for groups that do not divide the channels and an epsilon not above zero.
    """

    groups: int = 8
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    namings = {"changzy00": ()}

    changzy00 = variant("The port in changzy00/pytorch-attention; the default.")

    @nn.compact
    def gate(self, pooled: Array) -> Array:
        """The channels' factors from their averages: (N, C) -> (N, C), within (0, 1)."""
        if not self.epsilon > 0:
            raise InputError(f"epsilon={self.epsilon} is not above zero: use such as 1e-5.")
        dtype = at_least_float32(self.dtype or pooled.dtype)
        shape = (pooled.shape[-1],)
        w = self.param("w", self.scale_init, shape, self.param_dtype).astype(dtype)
        b = self.param("b", self.bias_init, shape, self.param_dtype).astype(dtype)
        normal = standardise(
            pooled.astype(dtype), groups=self.groups, variance_epsilon=self.epsilon
        )
        return jax.nn.sigmoid(w[None] * normal + b[None])
