"""Article 3's dual attention: a channel gate and a spatial gate side by side."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer, torch_default
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class DualAttention(Mechanism):
    """Dual attention: x times a gate per channel and a gate per position, both read from x itself.

        s_c  = gate(W2 activation(W1 mean_hw x))    one factor a channel
        s_hw = gate(w . x_hw)                       one factor a position
        y    = dropout(x * (1 - beta + beta s_c) * (1 - alpha + alpha s_hw))

    Article 3 calls it SCA-CNN, after Chen, Zhang, Xiao, Nie, Shao, Liu, Chua, "SCA-CNN: Spatial and
    Channel-wise Attention in Convolutional Networks for Image Captioning", CVPR 2017,
    arXiv:1611.05594. It is not that (`SCACNN` is), and no paper defines it: that paper's gates are
    softmaxes, conditioned on a decoder, and the spatial one reads the map that the channel one has
    rescaled.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider, but for
    the convolution to one channel, which computes in `dtype` or x's.
    Parameters: channel_att_1 kernel (1, 1, C, h), channel_att_3 kernel (1, 1, h, C), spatial_att_0
    kernel (1, 1, C, 1), and their biases.
    Sows both factors of x: {"channel": (N, C), "spatial": (N, H, W, 1)}.

    Fields:
        reduction: C / h; h is rounded down.
        activation: between the two channel layers.
        gate: maps logits to factors, in both paths.
        alpha, beta: strengths of the spatial and of the channel path: 0 leaves x as it is, 1 is
            the whole gate. Article 3 has a table of strengths for three tasks and no formula; the
            interpolation above is ours.
        spatial: without, there is no spatial path and none of its parameters.
        drop_rate: with `train`, the probability of zeroing a whole channel of a sample; the others
            are scaled by 1 / (1 - drop_rate), as torch's Dropout2d does. Needs an rng "dropout".
        spatial_kernel_init: of the convolution to one channel, apart from `kernel_init`: article 3
            draws every kernel from N(0, 2 / fan_out), and this one's fan_out is 1, whatever C is.
            At 512 ReLU channels four gates in five, or more, then lie within 0.01 of 0 or 1, where
            next to no gradient passes. Set both initialisers to `kaiming_fan_out` for the
            article's scheme.

    Deviations: LiteDualAttention has no forward in the article; `lite` has DualAttention's.

    Raises InputError where `reduction` leaves no channel, and for a `drop_rate`, `alpha` or `beta`
    outside [0, 1].
    """

    reduction: int = 8
    activation: Callable[[Array], Array] = jax.nn.relu
    gate: Callable[[Array], Array] = jax.nn.sigmoid
    alpha: float = 1.0
    beta: float = 1.0
    spatial: bool = True
    drop_rate: float = 0.0
    spatial_kernel_init: Initializer = torch_default

    role = "recalibrate"
    namings = {"articles": ()}

    article_s3 = variant("Article 3's DualAttention; the default.")
    article_s3_dropout = variant(
        "Article 3's DualAttention with its attention dropout.", drop_rate=0.1
    )
    lite = variant(
        "Article 3's LiteDualAttention, for mobile networks.",
        reduction=16,
        activation=jax.nn.hard_swish,
        gate=jax.nn.hard_sigmoid,
    )
    channel_only = variant("Article 3's dual attention reduced to its channel gate.", spatial=False)
    classification = variant(
        "Article 3's strengths for classification: mostly the channels.", beta=0.7, alpha=0.3
    )
    detection = variant("Article 3's strengths for detection.", beta=0.5, alpha=0.7)
    segmentation = variant(
        "Article 3's strengths for segmentation: mostly the positions.", beta=0.3, alpha=0.8
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if not 0 <= self.drop_rate <= 1:
            raise InputError(f"drop_rate={self.drop_rate} must be a probability: use 0 to 1.")
        for name, strength in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= strength <= 1:
                raise InputError(f"{name}={strength} must be a strength: use 0 to 1.")
        features = x.shape[-1]
        hidden = reduced_features(features, self.reduction)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        logits = bottleneck(
            average_pool(x),
            hidden,
            features,
            names=("channel_att_1", "channel_att_3"),
            activation=self.activation,
            dtype=wide,
            **self.initialisers,
        )
        factors = {"channel": _tempered(self.gate(logits), self.beta)}
        if self.spatial:
            spatial_conv = self.convolution(
                1, dtype=dtype, kernel_init=self.spatial_kernel_init, name="spatial_att_0"
            )
            spatial = self.gate(spatial_conv(x).astype(wide))
            factors["spatial"] = _tempered(spatial, self.alpha)
        self.sow("intermediates", "attention", factors)
        y = rescale(x, *factors.values())
        return nn.Dropout(self.drop_rate, broadcast_dims=(1, 2))(y, deterministic=not train)


def _tempered(gate: Array, strength: float) -> Array:
    """From 1 at strength 0 to the gate itself at 1."""
    return gate if strength == 1 else 1 - strength + strength * gate
