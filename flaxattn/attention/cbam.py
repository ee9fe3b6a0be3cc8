"""CBAM: channel attention, then spatial attention."""

from collections.abc import Callable, Sequence
from functools import partial

from flax import linen as nn
from jax import Array

from flaxattn.attention.channel_attention import ChannelAttention
from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.attention.spatial_attention import SpatialAttention
from flaxattn.layers.norm import BatchNorm


class CBAM(Mechanism):
    """Convolutional block attention module: which channels matter, then which positions.

        x' = x  * sigmoid(mlp(mean_hw x) + mlp(max_hw x))       (Eq. 2)
        y  = x' * sigmoid(conv_k([mean_c x'; max_c x']))        (Eq. 3)

    Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
    arXiv:1807.06521.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; both gates are computed in float32 or wider.
    Parameters: those of ChannelAttention under `channel`, of SpatialAttention under `spatial`.

    The defaults are the paper's equations as they stand, which are also article 0's: no biases and
    no normalisation. The paper's results were obtained with `official()`:

        | variant    | MLP biases | hidden width | spatial convolution      | pools at its input |
        |------------|------------|--------------|--------------------------|--------------------|
        | paper, s0  | no         | floor(C / r) | 7x7                      | mean, max          |
        | article_s2 | yes        | floor(C / r) | 3x3, bias                | mean, max          |
        | official   | yes        | floor(C / r) | 7x7, BatchNorm, m = 0.99 | max, mean          |
        | timm       | no         | round(C / r) | 7x7, BatchNorm, m = 0.9  | mean, max          |
        | light      | no         | round(C / r) | 7x7, BatchNorm, m = 0.9  | (mean + max) / 2   |

    Fields:
        reduction: C over the hidden width of the MLP.
        kernel_size: k of the spatial convolution, odd.
        use_bias: biases in the MLP.
        spatial_bias: a bias in the spatial convolution.
        divisor: if given, the hidden width is C / reduction rounded to a multiple of it.
        pools: of the channel half: "avg", "max", and the authors' code's "lp" and "lse".
        spatial_pools: of the spatial half, in the order of the convolution's input channels.
        average_pools: let both halves read the mean of their pools instead of each of them.
        depthwise: separate the spatial convolution, as article 1 says of CBAM; nothing is saved
            (see `SpatialAttention.separable`).
        dtype: of the gates' arithmetic, if wider than float32.
        norm: what normalises the spatial logits, such as BatchNorm, or None. The authors' ResNet
            starts its scale at 0, so that every position begins with the gate 1/2:
            norm=partial(BatchNorm, momentum=0.99, scale_init=nn.initializers.zeros).

    Without the spatial half (the authors' no_spatial) use ChannelAttention.

    Deviations and errors: see the two halves.
    """

    reduction: int = 16
    kernel_size: int = 7
    use_bias: bool = False
    spatial_bias: bool = False
    divisor: int | None = None
    pools: Sequence[str] = ("avg", "max")
    spatial_pools: Sequence[str] = ("avg", "max")
    average_pools: bool = False
    depthwise: bool = False
    norm: Callable[..., nn.Module] | None = None

    role = "recalibrate"
    namings = {
        "article_s0": (("ca", "channel"), ("sa.conv1", "spatial.conv")),
        "article_s2": (
            ("fc1", "channel.fc1"),
            ("fc2", "channel.fc2"),
            ("conv_after_concat", "spatial.conv"),
        ),
        "official": (
            ("ChannelGate.mlp.1", "channel.fc1", "linear"),
            ("ChannelGate.mlp.3", "channel.fc2", "linear"),
            ("SpatialGate.spatial.conv", "spatial.conv"),
            ("SpatialGate.spatial.bn", "spatial.bn"),
        ),
        "timm": (("spatial.conv.conv", "spatial.conv"), ("spatial.conv.bn", "spatial.bn")),
    }

    paper = variant(
        "The paper's equations, without the batch norm of its authors' code; the default."
    )
    article_s0 = variant("Article 0's CBAM: the paper's equations.")
    article_s2 = variant(
        "Article 2's CbamNet: biases everywhere and a 3x3 spatial convolution.",
        kernel_size=3,
        use_bias=True,
        spatial_bias=True,
    )
    official = variant(
        "The authors' code, which trained the paper's networks.",
        use_bias=True,
        spatial_pools=("max", "avg"),
        norm=partial(BatchNorm, momentum=0.99),
    )
    timm = variant("timm's CbamModule.", divisor=1, norm=BatchNorm)
    light = variant(
        "CBAM whose halves read (average + maximum) / 2: timm's LightCbamModule.",
        **timm.defaults,
        average_pools=True,
    )

    @property
    def neutral(self) -> Neutral:
        spatial = "pointwise" if self.depthwise else "conv"
        last = "bn" if self.norm is not None else spatial
        return Neutral(("channel.fc2", f"spatial.{last}"), gain=4.0)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        x = ChannelAttention(
            reduction=self.reduction,
            use_bias=self.use_bias,
            divisor=self.divisor,
            pools=self.pools,
            average_pools=self.average_pools,
            dtype=self.dtype,
            **self.initialisers,
            name="channel",
        )(x, train)
        return SpatialAttention(
            kernel_size=self.kernel_size,
            use_bias=self.spatial_bias,
            pools=self.spatial_pools,
            average_pools=self.average_pools,
            depthwise=self.depthwise,
            dtype=self.dtype,
            **self.initialisers,
            norm=self.norm,
            name="spatial",
        )(x, train)
