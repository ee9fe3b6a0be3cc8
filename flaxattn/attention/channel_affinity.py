"""DANet's channel attention."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.layers.precision import at_least_float32


class ChannelAffinity(Mechanism):
    """Channel affinity: each channel adds a mean of all, weighted by their scalar products with it.

        e_ij = sum_hw x_hwi x_hwj
        a_i  = softmax_j(e_ij)
        y_i  = gamma * sum_j a_ij x_j + x_i

    There is nothing to learn but gamma, which starts at zero: at first the layer is the identity.
    As e_ii is a sum of squares, on larger maps each channel attends to little but itself.

    Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR 2019,
    arXiv:1809.02983.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; both products over the map multiply in `dtype` or x's
    with the platform's default precision (see `Conv`), their sums and the softmax are float32 or
    wider. Parameter: gamma (1,). Sows the map (N, C, C): row i holds the weights a_i.

    Fields:
        similar: as above; without, a_i = softmax_j(max_k e_ik - e_ij) = softmax_j(-e_ij), which the
            authors' code computes: it prefers the channels that are LEAST like i, not the most.
            Weights of either load into both: a file does not say which it is of.

    DANet's other half, over positions, is `SelfAttention.danet`.
    """

    similar: bool = True

    role = "context"
    namings = {"official": ()}
    neutral = Neutral(("gamma",))

    official = variant(
        "The authors' CAM_Module, which is not the paper's equation: the channels least alike.",
        similar=False,
    )
    paper = variant("The paper's equation: similar channels; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        gamma = self.param("gamma", nn.initializers.zeros, (1,), self.param_dtype)

        maps = x.astype(dtype)
        energy = jnp.einsum("nhwi,nhwj->nij", maps, maps, preferred_element_type=wide)
        weights = jax.nn.softmax(energy if self.similar else -energy)
        self.sow("intermediates", "attention", weights)
        context = jnp.einsum(
            "nij,nhwj->nhwi", weights.astype(dtype), maps, preferred_element_type=wide
        )
        return x + (gamma[0].astype(wide) * context).astype(x.dtype)
