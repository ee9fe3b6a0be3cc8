"""Dense-and-implicit attention: one recurrent cell for all blocks of a stage."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features

Carry = tuple[Array, Array]


class DenseImplicit(Mechanism):
    """Dense-and-implicit attention: channel gates from a cell that remembers the blocks before.

        i, f, g, o = split(mlp_x(mean_hw x) + mlp_h(h'))    (h', c': of the block before, first 0)
        c = sigmoid(f) * c' + sigmoid(i) * tanh(g)
        h = sigmoid(o) * sigmoid(c)                         (an LSTM has tanh(c))
        y = h * x

    Both mlps are C -> C / r -> 4C with a ReLU between.

    Huang, Liang, Liang, Yang, "DIANet: Dense-and-Implicit Attention Network", AAAI 2020,
    arXiv:1905.10671.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider.
    Parameters: input_fc1 and hidden_fc1 kernels (1, 1, C, C / r), input_fc2 and hidden_fc2 kernels
    (1, 1, C / r, 4C), the gates in the order i, f, g, o, and all biases. Sows h.

    Called alone it begins with zeros. Over several maps of C channels, such as a stage's blocks':

        carry = layer.initial_carry(x)
        y1, carry = layer.step(x1, carry)
        y2, carry = layer.step(x2, carry)

    which is what `SharedAttention`, and `share=True` in a backbone's placement, do.

    Fields:
        reduction: r; C / r is rounded down.
        dtype: of the gates' arithmetic, if wider than float32.

    Raises InputError where `reduction` leaves no channel.
    """

    reduction: int = 4

    role = "recalibrate"
    namings = {
        "official": (
            ("w_ih.0.seq.0", "input_fc1", "linear"),
            ("w_ih.0.seq.2", "input_fc2", "linear"),
            ("w_hh.0.seq.0", "hidden_fc1", "linear"),
            ("w_hh.0.seq.2", "hidden_fc2", "linear"),
        ),
    }

    official = variant("The authors' LSTMCell of one layer; the default.")

    def initial_carry(self, x: Array) -> Carry:
        """The zeros (N, C) that h and c are before the first map."""
        dtype = at_least_float32(self.dtype or x.dtype)
        zeros = jnp.zeros((x.shape[0], x.shape[-1]), dtype)
        return zeros, zeros

    @nn.compact
    def cell(self, pooled: Array, carry: Carry) -> Carry:
        """The next h and c from averages: all (N, C)."""
        features = pooled.shape[-1]
        hidden, memory = carry

        def logits(z: Array, source: str) -> Array:
            return bottleneck(
                z,
                reduced_features(features, self.reduction),
                4 * features,
                names=(f"{source}_fc1", f"{source}_fc2"),
                dtype=at_least_float32(self.dtype or pooled.dtype),
                **self.initialisers,
            )

        gates = logits(pooled, "input") + logits(hidden, "hidden")
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jax.nn.sigmoid(memory), memory

    def gate(self, pooled: Array) -> Array:
        """The first h, from averages: (N, C) -> (N, C), within (0, 1)."""
        return self.cell(pooled, self.initial_carry(pooled))[0]

    def step(self, x: Array, carry: Carry, train: bool = False) -> tuple[Array, Carry]:
        """y, and the carry for the next map."""
        self.require_maps(x)
        carry = self.cell(average_pool(x), carry)
        self.sow("intermediates", "attention", carry[0])
        return rescale(x, carry[0]), carry

    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        y, _ = self.step(x, self.initial_carry(x), train)
        return y
