"""The spatial half of CBAM."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.errors import unknown
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import maximum, mean_of, pool_by_each, rescale
from flaxattn.layers.precision import at_least_float32


def channel_mean(x: Array) -> Array:
    """Mean over the channels: (N, H, W, C) -> (N, H, W, 1), float32 or wider."""
    return jnp.mean(x, axis=-1, keepdims=True, dtype=at_least_float32(x.dtype))


def channel_max(x: Array) -> Array:
    """Maximum over the channels: (N, H, W, C) -> (N, H, W, 1), float32 or wider.

    Where several channels hold the maximum its gradient goes to the first, as in torch.max;
    torch.amax shares it evenly between them.
    """
    return maximum(x, -1).astype(at_least_float32(x.dtype))


POOLS: dict[str, Callable[[Array], Array]] = {"avg": channel_mean, "max": channel_max}
OUTPUTS = ("scaled", "gate", "silu")


class SpatialAttention(Mechanism):
    """CBAM's spatial attention: a gate from the mean and maximum over channels around a position.

        l = conv_k([mean_c x; max_c x])
        y = sigmoid(l) * x                 (Eq. 3)

    Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
    arXiv:1807.06521.

    (N, H, W, C) -> (N, H, W, C), or one channel (N, H, W, 1), in x's dtype; the gate is computed in
    float32 or wider. Parameters: conv kernel (k, k, 2, 1) and its bias; bn, if there is a norm. A
    separable one has conv kernel (k, k, 1, 2), without bias, and pointwise kernel (1, 1, 2, 1).

    Fields:
        kernel_size: k, odd; 7 in the paper.
        use_bias: a bias in the convolution.
        pools: the convolution's input channels, of "avg" and "max", in this order.
        average_pools: give the convolution their mean as its only channel instead.
        depthwise: convolve each pool by itself, then weigh the two by a 1x1 convolution.
        output: "scaled" for y; "gate" for sigmoid(l); "silu" for sigmoid(l) * l, what article 1
            returns because its code overwrites x with l (its comment names y as the intent).
        dtype: of the gate's arithmetic, if wider than float32.
        norm: what normalises l, such as BatchNorm; called as
            norm(dtype=..., param_dtype=..., name="bn")(l, train).

    Where several channels hold the maximum, and after a ReLU many hold 0, the first takes its
    gradient, as with torch.max in the authors' and the articles' code; timm's amax shares it.

    Raises InputError for an even kernel and for unknown pools and outputs.
    """

    kernel_size: int = 7
    use_bias: bool = False
    pools: Sequence[str] = ("avg", "max")
    average_pools: bool = False
    depthwise: bool = False
    output: str = "scaled"
    norm: Callable[..., nn.Module] | None = None

    role = "recalibrate"
    namings = {
        "article_s0": (("conv1", "conv"),),
        "article_s1": (),
        "official": (("spatial.conv", "conv"), ("spatial.bn", "bn")),
        "timm": (("conv.conv", "conv"), ("conv.bn", "bn")),
    }

    article_s0 = variant("Article 0's SpatialAttention: returns the gate.", output="gate")
    article_s1 = variant(
        "Article 1's SpatialAttention as written: SiLU(l), one channel, x itself is lost.",
        output="silu",
    )
    official = variant(
        "The authors' SpatialGate: maximum before mean, and a slow BatchNorm (torch's 0.01).",
        pools=("max", "avg"),
        norm=partial(BatchNorm, momentum=0.99),
    )
    timm = variant("timm's SpatialAttn: BatchNorm after the convolution.", norm=BatchNorm)
    light = variant(
        "timm's LightSpatialAttn: its one input channel is (mean + maximum) / 2.",
        norm=BatchNorm,
        average_pools=True,
    )
    separable = variant(
        """CBAM's spatial attention with a depthwise separable convolution.

        Article 1 says that CBAM has one; no paper and no released code does. It saves nothing: for
        two pools and one output it has 2 k^2 + 2 weights instead of 2 k^2, 100 against 98 at k = 7,
        and as much more work. It is the same family of functions, for the dense kernel is the
        depthwise one times the pointwise one.
        """,
        depthwise=True,
    )

    @property
    def neutral(self) -> Neutral | None:
        """With a norm its affine, for a constant map would be divided by its deviation of zero."""
        if self.output != "scaled":
            return None
        last = "bn" if self.norm is not None else "pointwise" if self.depthwise else "conv"
        return Neutral((last,), gain=2.0)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.output not in OUTPUTS:
            raise unknown("output", self.output, OUTPUTS)
        dtype = at_least_float32(self.dtype or x.dtype)
        conv = partial(self.convolution, precision=lax.Precision.HIGHEST, dtype=dtype)
        pools = pool_by_each(x, self.pools, POOLS)
        pooled = mean_of(pools) if self.average_pools else jnp.concatenate(pools, axis=-1)
        size, channels = self.kernel_size, pooled.shape[-1]
        if self.depthwise:
            around = conv(channels, kernel_size=size, groups=channels, use_bias=False, name="conv")
            logits = conv(1, use_bias=self.use_bias, name="pointwise")(around(pooled))
        else:
            logits = conv(1, kernel_size=size, use_bias=self.use_bias, name="conv")(pooled)
        if self.norm is not None:
            bn = self.norm(dtype=dtype, param_dtype=self.param_dtype, name="bn")
            logits = bn(logits, train)
        gate = jax.nn.sigmoid(logits)
        self.sow("intermediates", "attention", gate)
        if self.output == "gate":
            return gate.astype(x.dtype)
        if self.output == "silu":
            return (gate * logits).astype(x.dtype)
        return rescale(x, gate)
