"""Efficient channel attention."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Neutral, Part, variant
from flaxattn.attention.parts.channel_gate import ChannelGate
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import require_odd
from flaxattn.layers.cpu_conv import Geometry, native
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features

PADDINGS = ("zeros", "circular")


class EfficientChannel(ChannelGate):
    """Efficient channel attention: each channel's gate is read from its k neighbours' averages.

        z = mean_hw x_hwc
        s = sigmoid(conv1d_k(z))                  along the channel axis
        k = |log2(C) / gamma + b / gamma|_odd     if not given
        y = s * x

    Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural
    Networks", CVPR 2020, arXiv:1910.03151 (Section 3.2).

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: conv kernel (k, 1, 1), no bias; with `reduction` conv kernel (1, 1, h), conv2 kernel
    (k, h, 1), and their biases.

    Fields:
        kernel_size: k, odd; None for the rule above, with the fraction cut and an even number
            raised by one: 1 below 8 channels, 3 below 128, 5 below 2048, 7 below 32768.
        gamma, b: of that rule.
        min_kernel_size: what the rule gives at least.
        padding: "zeros" beyond the first and the last channel, or "circular": they are neighbours.
        reduction: if given, timm's experiment s = sigmoid(conv2_k(relu(conv_1(z)))), between whose
            convolutions each channel has h = C / reduction values, rounded to a multiple of 8.
        dtype: of the gate's arithmetic, if wider than float32.

    The authors' code and both articles leave the rule out; article 0 describes it in its text and
    ignores its `channel` argument. The authors' trained ResNet-50 has k = 3, 5, 5, 7 by stage; the
    rule gives 5, 5, 5, 7 for what the blocks put out (256 to 2048 channels) and 3, 5, 5, 5 for
    their inner width (64 to 512), so give `kernel_size` to load it. Deviations from the paper:
    none, but for circular padding and `reduction`.

    Raises InputError for an even kernel size or minimum, a gamma that is not positive, an unknown
    padding, a kernel that reaches beyond all channels on both sides, and a reduction below one.
    """

    kernel_size: int | None = None
    gamma: float = 2.0
    b: float = 1.0
    min_kernel_size: int = 1
    padding: str = "zeros"
    reduction: int | None = None

    namings = {
        "articles": (),
        "official": (),
        "timm": (),
    }

    article_s0 = variant(
        "Article 0's ECAAttention: three neighbours whatever the channels.", kernel_size=3
    )
    article_s2 = variant(
        "Article 2's EcaNet: article 0's layer without its unused argument.", **article_s0.defaults
    )
    official = variant("The authors' eca_layer: 3 unless told.", kernel_size=3)
    timm = variant(
        "timm's EcaModule(channels): the rule, and at least three neighbours.", min_kernel_size=3
    )
    timm_mlp = variant(
        """timm's EcaModule(channels, use_mlp=True), its "ecam": two layers with biases.""",
        **timm.defaults,
        reduction=8,
    )
    circular = variant(
        """Efficient channel attention whose first and last channels are neighbours.

        timm's CecaModule(channels): the rule, and at least three neighbours; no paper.
        """,
        padding="circular",
        min_kernel_size=3,
    )

    @property
    def neutral(self) -> Neutral:
        return Neutral(("conv",) if self.reduction is None else ("conv2",), gain=2.0)

    @nn.compact
    def gate(self, pooled: Array) -> Array:
        """The channels' factors from their averages: (N, C) -> (N, C), within (0, 1)."""
        if self.padding not in PADDINGS:
            raise unknown("padding", self.padding, PADDINGS)
        features = pooled.shape[-1]
        kernel_size = require_odd(self._kernel_size(features))
        reach = kernel_size // 2
        dtype = at_least_float32(self.dtype or pooled.dtype)
        z = pooled[:, :, None].astype(dtype)
        if self.reduction is not None:
            hidden = reduced_features(features, self.reduction, divisor=8, round_limit=0.9)
            highest = lax.Precision.HIGHEST
            z = self.convolution(hidden, dtype=dtype, precision=highest, name="conv")(z)
            z = jax.nn.relu(z)
        if reach > features:
            raise InputError(
                f"kernel_size={kernel_size} reaches beyond all {features} channels on both sides: "
                f"use one of at most {2 * features + 1}."
            )
        mode = "wrap" if self.padding == "circular" else "constant"
        last = _AlongChannels(
            kernel_size,
            use_bias=self.reduction is not None,
            name="conv" if self.reduction is None else "conv2",
            **self.initialisers,
        )
        return jax.nn.sigmoid(last(jnp.pad(z, ((0, 0), (reach, reach), (0, 0)), mode=mode)))

    def _kernel_size(self, features: int) -> int:
        if self.kernel_size is not None:
            return self.kernel_size
        if self.gamma <= 0:
            raise InputError(
                f"gamma={self.gamma} is not positive: use a number above zero, such as 2."
            )
        at_least = require_odd(self.min_kernel_size, "min_kernel_size")
        size = int(abs(math.log2(features) + self.b) / self.gamma)
        return max(size if size % 2 else size + 1, at_least)


class _AlongChannels(Part):
    """A convolution over padded channels to one value each: (N, C + k - 1, h) -> (N, C).

    Parameters as of a `Conv` of one axis.
    """

    kernel_size: int
    use_bias: bool

    @nn.compact
    def __call__(self, z: Array) -> Array:
        shape = (self.kernel_size, z.shape[-1], 1)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(z.dtype)
        y = lax.platform_dependent(z, kernel, tpu=_sum_of_taps, default=_convolved)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (1,), self.param_dtype)
        return y + bias.astype(z.dtype)[None]


def _convolved(z: Array, kernel: Array) -> Array:
    y = native(z, kernel, Geometry((1,), (0,), (1,)), lax.Precision.HIGHEST)
    return y[:, :, 0]


def _sum_of_taps(z: Array, kernel: Array) -> Array:
    """The same, in a second of a TPU's compiler instead of half a minute.

    A CPU would fuse it with what follows, and compute a gate again for each position.
    """
    features = z.shape[1] - len(kernel) + 1
    products = [
        jnp.sum(z[:, j : j + features] * taps.T[None], axis=-1) for j, taps in enumerate(kernel)
    ]
    return sum(products[1:], start=products[0])
