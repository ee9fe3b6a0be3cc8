"""Gated channel transformation: channels compete or cooperate through their norms."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import Initializer
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32

EMBEDDINGS = ("l2", "l1")


class GatedChannel(Mechanism):
    """Gated channel transformation: a gate in [0, 2] from each channel's share of the norm.

        s_c  = alpha_c sqrt(sum_hw x_hwc^2 + epsilon)        embedding
        s_c' = s_c / sqrt(mean_k s_k^2 + epsilon)            channel normalisation
        y    = x * (1 + tanh(gamma_c s_c' + beta_c))         gating

    gamma and beta start at zero: at first the layer is the identity. A positive gamma lets channels
    compete, a negative one lets them cooperate.

    Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020,
    arXiv:1909.11519. GaussianContext is another paper's layer of the same abbreviation, GCT.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: alpha, gamma, beta (C,). Sows the gate (N, C).

    Fields:
        embedding: "l2" as above; "l1" for s_c = alpha_c sum_hw |x_hwc| and
            s_c' = s_c / (mean_k |s_k| + epsilon), the authors' other mode.
        epsilon: above zero.
        dtype: of the gate's arithmetic, if wider than float32.
        scale_init, bias_init: of gamma and beta; alpha starts at one.

    The authors stand it before each convolution. Deviations from their code: none; its `after_relu`
    only spares the absolute value.

    Raises InputError for an unknown embedding and an epsilon that is not above zero.
    """

    embedding: str = "l2"
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.zeros

    role = "recalibrate"
    namings = {
        "official": tuple((name, name, "1n11") for name in ("alpha", "gamma", "beta")),
    }
    neutral = Neutral(("gamma", "beta"))

    official = variant("The authors' PyTorch GCT; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.embedding not in EMBEDDINGS:
            raise unknown("embedding", self.embedding, EMBEDDINGS)
        if not self.epsilon > 0:
            raise InputError(f"epsilon={self.epsilon} is not above zero: use such as 1e-5.")
        dtype = at_least_float32(self.dtype or x.dtype)

        def vector(name: str, init: Initializer) -> Array:
            return self.param(name, init, (x.shape[-1],), self.param_dtype).astype(dtype)[None]

        alpha = vector("alpha", nn.initializers.ones)
        gamma = vector("gamma", self.scale_init)
        beta = vector("beta", self.bias_init)

        wide = x.astype(dtype)
        if self.embedding == "l2":
            norms = jnp.sqrt(jnp.sum(jnp.square(wide), axis=(1, 2)) + self.epsilon)
            embedded = alpha * norms
            total = jnp.mean(jnp.square(embedded), axis=-1, keepdims=True)
            scale = jnp.sqrt(total + self.epsilon)
        else:
            embedded = alpha * jnp.sum(jnp.abs(wide), axis=(1, 2))
            scale = jnp.mean(jnp.abs(embedded), axis=-1, keepdims=True) + self.epsilon
        gate = 1 + jnp.tanh(gamma * embedded / scale + beta)
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
