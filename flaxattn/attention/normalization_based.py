"""Normalisation-based attention: batch norm's own scales weigh its output, which gates x."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.relative_position import require_size
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32


class NormalizationBased(Mechanism):
    """Normalisation-based attention: a gate for each value, weighed by batch norm's scales.

        w_c = |gamma_c| / sum_k |gamma_k|         gamma: the scale of bn2
        y   = sigmoid(w_c bn2(x)) * x

    and with `spatial` once more for y, with a batch norm whose "channels" are the positions:

        w_hw = |lambda_hw| / sum_ij |lambda_ij|   lambda: the scale of bn
        y'   = sigmoid(w_hw bn(y)) * y

    Liu, Shao, Teng, Hoffmann, "NAM: Normalization-based Attention Module", arXiv 2021,
    arXiv:2111.12419. The paper writes the weights without absolute values.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider.
    Parameters: bn2, over C channels; with `spatial` bn, over HW positions, so that maps of another
    size need other weights. Sows the gate (N, H, W, C), with `spatial` a dict of "channel" and
    "spatial".

    Fields:
        spatial: the paper's spatial half too. The authors' repository had it until 21 September
            2021; their last commit leaves it out and ignores the argument `no_spatial`.
        dtype: of the gates' arithmetic, if wider than float32.
        norm: BatchNorm, or what else has a parameter `scale`; called as
            norm(dtype=..., param_dtype=..., name=...)(x, train).

    The weights pass no gradient to the scales, as in the authors' code; through bn2(x) they get
    theirs. All weights are about 1 / C, so at first the gates lie near 1/2. Deviation: scales that
    are all zero give weights of zero, where the authors' code returns NaN.

    Raises InputError, from BatchNorm, for one sample of one position in train mode, and with
    `spatial` on a map of another size than the layer was initialised with.
    """

    spatial: bool = False
    norm: Callable[..., nn.Module] = BatchNorm

    role = "recalibrate"
    namings = {
        "official": (("Channel_Att.bn2", "bn2"), ("Spatial_Att.bn", "bn")),
        "official_channel": (),
    }

    official = variant("The authors' released Att: the channel half; the default.")
    channel_spatial = variant(
        "The authors' Att before 21 September 2021, told no_spatial=False: both halves.",
        spatial=True,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        dtype = at_least_float32(self.dtype or x.dtype)

        def gate(x: Array, name: str) -> Array:
            bn = self.norm(dtype=dtype, param_dtype=self.param_dtype, name=name)
            if name == "bn":
                require_size(bn, "scale", x.shape[-1:])
            y = bn(x, train)
            scale = jax.lax.stop_gradient(jnp.abs(bn.get_variable("params", "scale").astype(dtype)))
            total = jnp.sum(scale)
            weights = scale / jnp.where(total == 0, 1.0, total)
            return jax.nn.sigmoid(weights.reshape((1,) * (x.ndim - 1) + (-1,)) * y)

        wide = x.astype(dtype)
        # The norm widens to float32 by itself, and a narrow x has quicker statistics.
        channel = gate(x if dtype == jnp.float32 else wide, "bn2")
        if not self.spatial:
            self.sow("intermediates", "attention", channel)
            return rescale(x, channel)
        y = rescale(wide, channel)
        positions = y.reshape(y.shape[0], -1, y.shape[-1]).transpose(0, 2, 1)
        spatial = gate(positions, "bn").transpose(0, 2, 1).reshape(y.shape)
        self.sow("intermediates", "attention", {"channel": channel, "spatial": spatial})
        return rescale(x, channel, spatial)
