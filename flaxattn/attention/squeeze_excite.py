"""Squeeze-and-excitation."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Neutral, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.attention.parts.channel_gate import ChannelGate
from flaxattn.errors import InputError, require_least
from flaxattn.layers.conv import kaiming_fan_out
from flaxattn.layers.fields import checked
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class SqueezeExcite(ChannelGate):
    """Squeeze-and-excitation: each channel is rescaled by a gate read from all channels' averages.

        z_c = mean_hw x_hwc                     (Eq. 2)
        s   = sigmoid(W2 relu(W1 z))            (Eq. 3)
        y   = s * x                             (Eq. 4)

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: fc1 kernel (1, 1, C, h), fc2 kernel (1, 1, h, C), and their biases; with groups the
    third axis is that many times shorter.

    Fields:
        reduction: C / h; h is rounded down.
        hidden_features: h itself, if given: where it does not follow from x's channels, as in
            EfficientNet.
        use_bias: biases in both layers, as in the authors' Caffe model. The paper's journal
            version drops them in ResNets.
        divisor: if given, h is C / reduction rounded to a multiple of it, at least one multiple,
        round_limit: and one multiple more where that is less than this share of C / reduction.
        groups: of both layers; each reads and gates its own C / groups channels.
        activation: between the layers, the paper's relu.
        gate_activation: the paper's sigmoid.
        dtype: of the gate's arithmetic, if wider than float32.

    timm's SEModule with add_maxpool=True, which squeezes by the mean of average and maximum, is
    ChannelAttention.light(use_bias=True, divisor=8).

    Raises InputError where `reduction` leaves no channel (torch's bias-free version then halves x),
    where `groups` does not divide C and h, and for widths below one.
    """

    reduction: int = 16
    hidden_features: int | None = None
    use_bias: bool = True
    divisor: int | None = None
    round_limit: float = 0.0
    groups: int = 1
    activation: Callable[[Array], Array] = jax.nn.relu
    gate_activation: Callable[[Array], Array] = jax.nn.sigmoid

    namings = {
        "timm": (),
        "timm_efficientnet": (("conv_reduce", "fc1"), ("conv_expand", "fc2")),
        "torchvision": (),
        "articles": (("fc.0", "fc1", "linear"), ("fc.2", "fc2", "linear")),
    }

    article_s0 = variant("Article 0's SEAttention: no biases.", use_bias=False)
    article_s1 = variant("Article 1's SEBlock: biases; the default.")
    article_s2 = variant(
        "Article 2's SeNet: article 0's layer under another name.", **article_s0.defaults
    )
    timm = variant(
        "timm's SEModule: biases; the hidden width is rounded to a multiple of 8.", divisor=8
    )
    efficientnet = variant(
        """EfficientNet's squeeze-and-excitation: SiLU, and h a quarter of the block's input.

        Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
        2019, arXiv:1905.11946. x is that input expanded by six, so h is C / 24; after another
        expansion give `hidden_features`, or reduction=4 where there is none. Starts as TensorFlow's
        code: N(0, 2 / fan_out).
        """,
        reduction=24,
        activation=jax.nn.silu,
        kernel_init=kaiming_fan_out,
    )
    mobilenet_v3 = variant(
        """MobileNetV3's squeeze-and-excitation: a hard sigmoid, and h a multiple of eight.

        Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244. h is C / 4 rounded,
        by a tenth down at most. torchvision rounds floor(C / 4), which is the same for the
        multiples of 4 that the network has.
        """,
        reduction=4,
        divisor=8,
        round_limit=0.9,
        gate_activation=jax.nn.hard_sigmoid,
        kernel_init=kaiming_fan_out,
    )

    @classmethod
    @checked
    def grouped(cls, *, groups: int = 4, **fields) -> "SqueezeExcite":
        """Squeeze-and-excitation within groups of channels, with a fraction of the weights.

        Article 1 lists grouped attention among the light ones and ascribes it to GCNet, which does
        not group; no paper defines this layer. h is rounded to a multiple of the groups.
        """
        return cls(**{"groups": groups, "divisor": groups, **fields})

    @property
    def neutral(self) -> Neutral | None:
        """At zero each of these gates is one half."""
        halves = self.gate_activation in (jax.nn.sigmoid, jax.nn.hard_sigmoid)
        return Neutral(("fc2",), gain=2.0) if halves else None

    @nn.compact
    def gate(self, pooled: Array) -> Array:
        """Eq. 3 on averages: (N, C) -> (N, C), within [0, 1]."""
        require_least("groups", self.groups, 1)
        features = pooled.shape[-1]
        dtype = at_least_float32(self.dtype or pooled.dtype)

        logits = bottleneck(
            pooled,
            self._hidden_features(features),
            features,
            activation=self.activation,
            groups=self.groups,
            use_bias=self.use_bias,
            dtype=dtype,
            **self.initialisers,
        )
        return self.gate_activation(logits)

    def _hidden_features(self, features: int) -> int:
        if self.hidden_features is None:
            return reduced_features(
                features, self.reduction, divisor=self.divisor, round_limit=self.round_limit
            )
        if self.hidden_features < 1:
            raise InputError(
                f"hidden_features={self.hidden_features} is below one: use 1 or more, or None for "
                f"a share of the channels."
            )
        return self.hidden_features
