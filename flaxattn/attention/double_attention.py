"""Double attention: a few descriptors are gathered from the map and handed out to each position."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import kaiming_fan_out
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class DoubleAttention(Mechanism):
    """Double attention block: gather c_n descriptors of the map, give each position a mixture.

        b_pk = softmax over positions p of (convB x)_pk
        g_k  = sum_p b_pk (convA x)_p                       (gathering, Eq. 4)
        v_pk = softmax over descriptors k of (convV x)_pk
        y_p  = x_p + proj(sum_k v_pk g_k)                   (distribution, Eq. 5)

    Chen, Kalantidis, Li, Yan, Feng, "A^2-Nets: Double Attention Networks", NeurIPS 2018,
    arXiv:1810.11579.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the convolutions and both products over the map take
    `dtype` or x's and multiply in the platform's default precision (see `Conv`), their sums and the
    softmaxes are float32 or wider. Memory grows linearly with H * W.
    Parameters: convA kernel (1, 1, C, c_m), convB and convV kernels (1, 1, C, c_n), proj kernel
    (1, 1, c_m, C), and their biases. Sows both attentions, {"gather": (N, H, W, c_n),
    "distribute": (N, H, W, c_n)}: the first sums to one over the map, the second over c_n.

    Fields:
        reduction: C / c_m; c_m is rounded down.
        num_descriptors: c_n, or None for as many as c_m.
        residual: add x, as the paper does; both known ports leave it to the caller. A file of
            weights does not say it.

    Raises InputError where `reduction` leaves no channel and for `num_descriptors` below one.
    """

    reduction: int = 4
    num_descriptors: int | None = None
    residual: bool = True

    role = "context"
    namings = {
        "changzy00": (),
        "xmu": (("conv_reconstruct", "proj"),),
    }

    changzy00 = variant("changzy00's pytorch-attention: x is not added.", residual=False)
    xmu = variant(
        """xmu-xiaoma666's External-Attention-pytorch as meant: x is not added.

        Its softmaxes name no axis and run over the batch, so that a sample's output depends on the
        others beside it; here they run over positions and descriptors.
        """,
        residual=False,
        kernel_init=kaiming_fan_out,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        hidden = reduced_features(features, self.reduction)
        count = hidden if self.num_descriptors is None else self.num_descriptors
        if count < 1:
            raise InputError(f"num_descriptors={count} is below one: use 1 or more.")
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        conv = partial(self.convolution, dtype=dtype)

        values = conv(hidden, name="convA")(x)
        gather = jax.nn.softmax(conv(count, name="convB")(x).astype(wide), axis=(1, 2))
        distribute = jax.nn.softmax(conv(count, name="convV")(x).astype(wide), axis=-1)
        self.sow("intermediates", "attention", {"gather": gather, "distribute": distribute})

        descriptors = jnp.einsum(
            "nhwm,nhwk->nmk", values, gather.astype(dtype), preferred_element_type=wide
        )
        y = jnp.einsum(
            "nmk,nhwk->nhwm",
            descriptors.astype(dtype),
            distribute.astype(dtype),
            preferred_element_type=wide,
        )
        y = conv(features, name="proj")(y.astype(dtype)).astype(x.dtype)
        return x + y if self.residual else y
