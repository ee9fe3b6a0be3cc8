"""Effective squeeze-and-excitation."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.layers.conv import kaiming_fan_in
from flaxattn.layers.pooling import average_pool, max_pool, mean_of, rescale
from flaxattn.layers.precision import at_least_float32


class EffectiveSqueezeExcite(Mechanism):
    """Effective squeeze-and-excitation: squeeze-and-excitation by one layer of full width.

        z = mean_hw x_hwc
        s = hard_sigmoid(W z + b) = min(max(W z + b + 3, 0), 6) / 6
        y = s * x

    Lee, Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", CVPR 2020,
    arXiv:1911.06667.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: fc kernel (1, 1, C, C) and bias: C^2 + C, where squeeze-and-excitation has
    2 C^2 / r + C / r + C.

    Fields:
        gate_activation: maps logits to factors; a hard sigmoid in the authors' code and in timm.
        add_max: z = (mean_hw x_hwc + max_hw x_hwc) / 2, an experiment of timm's.
        dtype: of the gate's arithmetic, if wider than float32.

    Where a logit is beyond -3 or 3 the hard sigmoid is 0 or 1 and passes no gradient.

    The paper is recalled to write a plain sigmoid, which was not checked against its text; the
    default is the hard one of its released code.

    Deviation: a maximum's gradient goes to the first position that holds it, in timm evenly to all
    of them.
    """

    gate_activation: Callable[[Array], Array] = jax.nn.hard_sigmoid
    add_max: bool = False

    role = "recalibrate"
    namings = {"official": (), "timm": ()}

    official = variant(
        "The authors' eSEModule as their VoVNet initialises it: N(0, 2 / C).",
        kernel_init=kaiming_fan_in,
    )
    timm = variant("timm's EffectiveSEModule without its maximum pool; the default.")
    timm_max = variant(
        "timm's EffectiveSEModule(channels, add_maxpool=True).", **timm.defaults, add_max=True
    )

    @property
    def neutral(self) -> Neutral | None:
        halves = self.gate_activation in (jax.nn.sigmoid, jax.nn.hard_sigmoid)
        return Neutral(("fc",), gain=2.0) if halves else None

    @property
    def pooled_gate(self) -> Callable[[Array], Array] | None:
        return None if self.add_max else self.gate

    @nn.compact
    def gate(self, pooled: Array) -> Array:
        """The channels' factors from z: (N, C) -> (N, C), within [0, 1]."""
        fc = self.convolution(
            pooled.shape[-1],
            precision=lax.Precision.HIGHEST,
            dtype=at_least_float32(self.dtype or pooled.dtype),
            name="fc",
        )
        return self.gate_activation(fc(pooled[:, None, None, :])[:, 0, 0, :])

    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        z = average_pool(x)
        gate = self.gate(mean_of([z, max_pool(x)]) if self.add_max else z)
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
