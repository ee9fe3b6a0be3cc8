"""The channel half of CBAM."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import unknown
from flaxattn.layers.pooling import (
    average_pool,
    max_pool,
    mean_of,
    pool_by_each,
    rescale,
    safe_sqrt,
)
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


def l2_pool(x: Array) -> Array:
    """Euclidean norm over the map: (N, H, W, C) -> (N, C), float32 or wider.

    Its gradient is 0 for a channel that is 0 everywhere, where torch's lp_pool2d returns NaN.
    """
    return safe_sqrt(jnp.sum(jnp.square(x.astype(at_least_float32(x.dtype))), axis=(1, 2)))


def log_sum_exp_pool(x: Array) -> Array:
    """log sum exp over the map: (N, H, W, C) -> (N, C), float32 or wider."""
    return jax.nn.logsumexp(x.astype(at_least_float32(x.dtype)), axis=(1, 2))


POOLS: dict[str, Callable[[Array], Array]] = {
    "avg": average_pool,
    "max": max_pool,
    "lp": l2_pool,
    "lse": log_sum_exp_pool,
}
OUTPUTS = ("scaled", "gate")


class ChannelAttention(Mechanism):
    """CBAM's channel attention: a gate from the averages and maxima of all channels.

        s = sigmoid(mlp(mean_hw x) + mlp(max_hw x)),  mlp(z) = W2 relu(W1 z)     (Eq. 2)
        y = s * x

    Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
    arXiv:1807.06521.

    (N, H, W, C) -> (N, H, W, C), or the gate (N, 1, 1, C), in x's dtype; the gate is computed in
    float32 or wider. Parameters: fc1 kernel (1, 1, C, h), fc2 kernel (1, 1, h, C), and their
    biases.

    Fields:
        reduction: C / h; h is rounded down.
        use_bias: biases in both layers, as in the authors' code; the paper writes none.
        divisor: if given, h is C / reduction rounded to a multiple of it, at least one multiple.
        pools: which statistics pass through the shared MLP and are summed, of "avg", "max", "lp"
            (Euclidean norm) and "lse" (log-sum-exp); the last two are in the authors' code only.
        average_pools: pass the mean of the pools through the MLP, once, instead.
        output: "scaled" for y, "gate" for s.
        dtype: of the gate's arithmetic, if wider than float32.

    Where several positions hold the maximum the first takes its gradient, as with the authors'
    pools; timm's amax shares it.

    Raises InputError where `reduction` leaves no channel and for unknown pools and outputs.
    """

    reduction: int = 16
    use_bias: bool = False
    divisor: int | None = None
    pools: Sequence[str] = ("avg", "max")
    average_pools: bool = False
    output: str = "scaled"

    role = "recalibrate"
    namings = {
        "article_s0": (),
        "official": (("mlp.1", "fc1", "linear"), ("mlp.3", "fc2", "linear")),
        "timm": (),
    }

    article_s0 = variant("Article 0's ChannelAttention: returns the gate.", output="gate")
    official = variant("The authors' ChannelGate: biases.", use_bias=True)
    timm = variant(
        "timm's ChannelAttn: no biases; the hidden width is rounded to the nearest, at least 1.",
        divisor=1,
    )
    light = variant(
        "timm's LightChannelAttn: one pass through the MLP, for (average + maximum) / 2.",
        divisor=1,
        average_pools=True,
    )

    @property
    def neutral(self) -> Neutral | None:
        return Neutral(("fc2",), gain=2.0) if self.output == "scaled" else None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.output not in OUTPUTS:
            raise unknown("output", self.output, OUTPUTS)
        pools = pool_by_each(x, self.pools, POOLS)
        # One row for each pool: the shared MLP sees them all at once.
        pooled = jnp.stack([mean_of(pools)] if self.average_pools else pools, axis=1)
        features = x.shape[-1]
        hidden = reduced_features(features, self.reduction, divisor=self.divisor)
        dtype = at_least_float32(self.dtype or x.dtype)

        logits = bottleneck(
            pooled,
            hidden,
            features,
            use_bias=self.use_bias,
            dtype=dtype,
            **self.initialisers,
        )
        gate = jax.nn.sigmoid(jnp.sum(logits, axis=1))
        self.sow("intermediates", "attention", gate)
        if self.output == "gate":
            return gate[:, None, None, :].astype(x.dtype)
        return rescale(x, gate)
