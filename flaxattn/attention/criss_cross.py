"""Criss-cross attention."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.errors import InputError
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features

MOST_PASSES = 16  # each is traced anew, and two already reach the whole map


class CrissCross(Mechanism):
    """Criss-cross attention: each position attends to its column and its row, several times over.

        s_ij = (Wq x_i) . (Wk x_j)           j in the column and row of i, i itself once
        a_i  = softmax_j s_ij                over H + W - 1 positions
        y_i  = gamma * sum_j a_ij Wv x_j + x_i

    After two passes with the same weights every position has reached every other. gamma starts at
    zero: at first the layer is the identity.

    Huang, Wang, Huang, Huang, Wei, Liu, "CCNet: Criss-Cross Attention for Semantic Segmentation",
    ICCV 2019, arXiv:1811.11721.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the projections and the products over the map take
    `dtype` or x's and multiply in the platform's default precision (see `Conv`), their sums and the
    softmax are float32 or wider. Memory grows with H * W * (H + W).
    Parameters: gamma (1,); query_conv and key_conv kernels (1, 1, C, C / reduction), value_conv
    kernel (1, 1, C, C), and their biases.
    Sows, for each pass, the map (N, H, W, H + W): the weights of a position's column, its own place
    there always zero, then of its row; together they sum to one.

    Fields:
        reduction: C / width of queries and keys, which is rounded down.
        recurrence: passes, with shared weights, of which a file does not say how many it is for.

    Raises InputError where `reduction` leaves no channel, and for a `recurrence` outside 1 to 16.
    """

    reduction: int = 8
    recurrence: int = 2

    role = "context"
    namings = {"official": ()}
    neutral = Neutral(("gamma",))

    official = variant(
        "The authors' CrissCrossAttention: one pass; their head makes one too unless told.",
        recurrence=1,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if not 1 <= self.recurrence <= MOST_PASSES:
            raise InputError(
                f"recurrence={self.recurrence} must be a number of passes: use 1 to {MOST_PASSES}."
            )
        features = x.shape[-1]
        hidden = reduced_features(features, self.reduction)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(x.dtype)
        project = partial(self.convolution, dtype=dtype)

        query = project(hidden, name="query_conv")
        key = project(hidden, name="key_conv")
        value = project(features, name="value_conv")
        gamma = self.param("gamma", nn.initializers.zeros, (1,), self.param_dtype)
        for _ in range(self.recurrence):
            context = self._attend(query(x), key(x), value(x)).astype(wide)
            x = (x.astype(wide) + gamma[0].astype(wide) * context).astype(x.dtype)
        return x

    def _attend(self, query: Array, key: Array, value: Array) -> Array:
        """Mean of the values of each position's column and row, in their dtype."""
        height = query.shape[1]
        wide = at_least_float32(query.dtype)

        def energies(axes: str) -> Array:
            return jnp.einsum(axes, query, key, preferred_element_type=wide)

        # A column's i, or a row's j, is another place g, or v, of the same column, or row.
        column = energies("nijd,ngjd->nijg")
        row = energies("nijd,nivd->nijv")
        itself = jnp.eye(height, dtype=bool).reshape(1, height, 1, height)
        column = jnp.where(itself, -jnp.inf, column)
        weights = jax.nn.softmax(jnp.concatenate([column, row], axis=-1))
        self.sow("intermediates", "attention", weights)
        weights = weights.astype(value.dtype)
        context = jnp.einsum("nijg,ngjc->nijc", weights[..., :height], value)
        return context + jnp.einsum("nijv,nivc->nijc", weights[..., height:], value)
