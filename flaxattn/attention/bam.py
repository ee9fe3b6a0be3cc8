"""BAM: a channel and a spatial branch, merged into a gate per position and channel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import unknown
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features

_MERGES: dict[str, Callable[[Array, Array], Array]] = {"add": jnp.add, "multiply": jnp.multiply}


class BAM(Mechanism):
    """Bottleneck attention module: x plus x times a gate from a channel and a spatial branch.

        c = norm(W2 relu(W1 mean_hw x))                              per channel    (Eq. 3)
        s = norm(conv1(relu(conv3(relu(conv3(relu(conv1(x))))))))    per position   (Eq. 4)
        y = x + x * sigmoid(c + s)                                                  (Eq. 1, 2)

    with a convolution's kernel size as its index; the 3x3 ones are dilated.

    Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", BMVC 2018, arXiv:1807.06514.

    (N, H, W, C) -> (N, H, W, C) in x's dtype. The spatial branch computes in `dtype` or x's, the
    channel branch and the gate in float32 or wider.
    Parameters, with h = C / reduction: gate_c_fc_0 kernel (1, 1, C, h), gate_c_fc_final (1, 1, h,
    C); gate_s_conv_reduce0 (1, 1, C, h), gate_s_conv_di_0 and _1 (3, 3, h, h), gate_s_conv_final
    (1, 1, h, 1), and their biases; batch norms gate_c_bn_final and gate_s_bn_final, or, without
    `norm_last`, gate_c_bn_1, gate_s_bn_reduce0, gate_s_bn_di_0 and gate_s_bn_di_1.
    Sows the gate (N, H, W, C).

    Fields:
        reduction: C / h; h is rounded down.
        dilation: of the 3x3 convolutions.
        merge: "add" for c + s, or "multiply" for c * s.
        norm_last: normalise the last layer of each branch, else every other one.
        dtype: of the spatial branch, and of the gate if wider than float32.
        norm: what normalises.

    Deviations: the paper's equations name no ReLU; here one follows all layers but the last of a
    branch, as in the authors' code. That code means over H x H positions only, the map's height in
    both directions, and so reads a part of a wide map and fails on a high one; here it is the whole
    map.

    Raises InputError where `reduction` leaves no channel, for an unknown `merge`, and in train mode
    for a single sample, over which the channel branch has nothing to normalise.
    """

    reduction: int = 16
    dilation: int = 4
    merge: str = "add"
    norm_last: bool = True
    norm: Callable[..., nn.Module] = BatchNorm

    role = "recalibrate"
    namings = {
        "official": (
            *(
                (f"channel_att.gate_c.gate_c_{layer}", f"gate_c_{layer}", *layout)
                for layer, *layout in (
                    ("fc_0", "linear"),
                    ("bn_1",),
                    ("fc_final", "linear"),
                    ("bn_final",),
                )
            ),
            *(
                (f"spatial_att.gate_s.gate_s_{kind}_{layer}", f"gate_s_{kind}_{layer}")
                for kind in ("conv", "bn")
                for layer in ("reduce0", "di_0", "di_1", "final")
            ),
        ),
    }

    paper = variant(
        "The paper's equations: the branches are added, each normalised last; the default."
    )
    official = variant(
        "The authors' code, of their released weights: multiplies, normalises all but the last.",
        merge="multiply",
        norm_last=False,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.merge not in _MERGES:
            raise unknown("merge", self.merge, _MERGES)
        features = x.shape[-1]
        hidden = reduced_features(features, self.reduction)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        def norm(z: Array, name: str, *, last: bool = False) -> Array:
            if last != self.norm_last:
                return z
            return self.norm(dtype=z.dtype, param_dtype=self.param_dtype, name=name)(z, train)

        channel = bottleneck(
            average_pool(x),
            hidden,
            features,
            names=("gate_c_fc_0", "gate_c_fc_final"),
            activation=lambda z: jax.nn.relu(norm(z, "gate_c_bn_1")),
            dtype=wide,
            **self.initialisers,
        )
        channel = norm(channel, "gate_c_bn_final", last=True)[:, None, None, :]

        z = x
        for layer, kernel_size in (("reduce0", 1), ("di_0", 3), ("di_1", 3)):
            conv = self.convolution(
                hidden,
                kernel_size=kernel_size,
                dilation=self.dilation,
                dtype=dtype,
                name=f"gate_s_conv_{layer}",
            )
            z = jax.nn.relu(norm(conv(z), f"gate_s_bn_{layer}"))
        spatial = self.convolution(1, dtype=dtype, name="gate_s_conv_final")(z).astype(wide)
        spatial = norm(spatial, "gate_s_bn_final", last=True)

        gate = jax.nn.sigmoid(_MERGES[self.merge](channel, spatial))
        self.sow("intermediates", "attention", gate)
        return rescale(x, 1 + gate)
