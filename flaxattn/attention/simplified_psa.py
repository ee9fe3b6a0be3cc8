"""Article 0's simplification of PSANet, as written and repaired."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError, unknown
from flaxattn.layers.precision import at_least_float32

REPAIRS = ("gather", "mix")


class SimplifiedPSA(Mechanism):
    """Collect and distribute without a point-to-point mask; returns `features` channels.

    After article 0's PSAModule, which it presents as a simplified PSANet (Zhao, Zhang, Liu, Shi,
    Loy, Lin, Jia, "PSANet: Point-wise Spatial Attention Network for Scene Parsing", ECCV 2018).
    With F = conv_reduce(x) as (features, H*W):

        P = softmax over positions of collect(F)
        Q = softmax over channels of distribute(F)
        "gather": y = F + (F P^T) Q          (ours) each row of P gathers a descriptor of the map,
                                             each position receives its own mixture of them
        "mix":    y = F + (P Q^T) F          (ours) the article's matrix mixes the channels
        None:     y = F + view(P Q^T)        the article: a (features, features) matrix read as if
                                             it were (features, H, W)

    The article's form works only where H*W equals features, and reads the second channel index as
    a position even there. Both repairs take any map, have the article's parameters and load its
    weights. None of the three is PSANet. "gather" is the default: it keeps both softmaxes' axes
    and is, up to the convolutions, double attention (Chen, Kalantidis, Li, Yan, Feng, "A^2-Nets",
    NeurIPS 2018, arXiv:1810.11579).

    (N, H, W, C) -> (N, H, W, features) in x's dtype; the convolutions and both products take
    `dtype` or x's and multiply in the platform's default precision (see `Conv`), their sums and the
    softmaxes are float32 or wider. Sows P as (N, H, W, features). Parameters: conv_reduce kernel
    (1, 1, C, features), collect and distribute kernels (1, 1, features, features), and their
    biases.

    Fields:
        features: channels of the output.
        repair: "gather", "mix" or None.

    Raises InputError for repair=None on a map of other than `features` positions and for an unknown
    repair.
    """

    features: int
    repair: str | None = "gather"

    role = "head"
    namings = {"articles": ()}

    article_s0 = variant(
        "Article 0's PSAModule as written, only for maps of `features` positions.",
        repair=None,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.repair is not None and self.repair not in REPAIRS:
            raise unknown("repair", self.repair, REPAIRS)
        _, height, width, _ = x.shape
        if self.repair is None and height * width != self.features:
            raise InputError(
                f"repair=None works only on maps of features={self.features} positions, and "
                f"{height}x{width} has {height * width}: use repair='gather' or 'mix', which take "
                f"any map and the same weights."
            )
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        conv = partial(self.convolution, self.features, dtype=dtype)

        def product(axes: str, a: Array, b: Array) -> Array:
            return jnp.einsum(axes, a.astype(dtype), b.astype(dtype), preferred_element_type=wide)

        reduced = conv(name="conv_reduce")(x)
        collected = jax.nn.softmax(conv(name="collect")(reduced).astype(wide), axis=(1, 2))
        distributed = jax.nn.softmax(conv(name="distribute")(reduced).astype(wide), axis=-1)
        self.sow("intermediates", "attention", collected)

        # n: batch, h and w: position, i and j: channels
        if self.repair == "gather":
            descriptors = product("nhwi,nhwj->nij", reduced, collected)
            attended = product("nij,nhwj->nhwi", descriptors, distributed)
        else:
            mixing = product("nhwi,nhwj->nij", collected, distributed)
            if self.repair == "mix":
                attended = product("nij,nhwj->nhwi", mixing, reduced)
            else:
                attended = mixing.transpose(0, 2, 1).reshape(reduced.shape)
        return (reduced + attended.astype(dtype)).astype(x.dtype)
