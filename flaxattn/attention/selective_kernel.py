"""Selective kernel convolution."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.bottleneck import bottleneck, reduced_features
from flaxattn.attention.pooling import average_pool
from flaxattn.conv import Conv, Initializer, torch_default
from flaxattn.precision import at_least_float32


class SelectiveKernel(nn.Module):
    """Selective kernel convolution: two sizes of kernel, mixed channel by channel.

        u1 = conv3x3(x), u2 = conv5x5(x)        (split)
        z  = mean_hw (u1 + u2)                  (Eq. 1, 2)
        a  = softmax_branch(W2 relu(W1 z))      (Eq. 3, 5)
        y  = a1 * u1 + a2 * u2                  (Eq. 6)

    Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019, arXiv:1903.06586.

    (N, H, W, C) -> (N, H', W', features) in x's dtype, with the call shape of `nn.Conv`. The
    convolutions compute in `dtype` or x's, the branch weights in float32 or wider.
    Parameters: conv3x3 and conv5x5, both kernel (3, 3, C, features) and bias, for the larger is
    a 3x3 with dilation 2; fc1 kernel (1, 1, features, h), fc2 kernel (1, 1, h, 2 * features).
    Sows the branch weights (N, 2, features), the 3x3 first.

    Fields:
        features: channels of the answer.
        strides: of both convolutions.
        reduction: features / h; h is rounded down.
        softmax: normalise the weights over the branches. Article 2 creates the softmax but never
            calls it, so its weights have no bound, any sign, and do not sum to one; `article_s2`
            is that function, the default is the repaired one. Both have the same parameters.

    Deviations from the paper, all the article's: dense biased convolutions without normalisation
    or ReLU, where the paper has 32 groups, batch norm and ReLU, and also normalises z's bottleneck
    and keeps at least 32 channels in it. Biases start at zero, where torch draws them from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Raises InputError where `reduction` leaves no channel.
    """

    features: int
    strides: int = 1
    reduction: int = 16
    softmax: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_default
    bias_init: Initializer = nn.initializers.zeros

    role: ClassVar[str] = "convolution"
    variants: ClassVar[tuple[str, ...]] = ("article_s2",)
    namings: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {
        "articles": (("fc.0", "fc1", "linear"), ("fc.2", "fc2", "linear")),
    }

    @classmethod
    def article_s2(cls, features: int, **fields) -> "SelectiveKernel":
        """Article 2's SkNet exactly: its softmax is never applied."""
        return cls(features, **{"softmax": False, **fields})

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        hidden = reduced_features(self.features, self.reduction)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        def branch(dilation: int, name: str) -> Array:
            conv = Conv(
                self.features,
                kernel_size=3,
                strides=self.strides,
                dilation=dilation,
                dtype=dtype,
                param_dtype=self.param_dtype,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
                name=name,
            )
            return conv(x)

        small, large = branch(1, "conv3x3"), branch(2, "conv5x5")
        logits = bottleneck(
            average_pool(small) + average_pool(large),
            hidden,
            2 * self.features,
            use_bias=False,
            dtype=wide,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
        )
        weights = logits.reshape(-1, 2, self.features)
        if self.softmax:
            weights = jax.nn.softmax(weights, axis=1)
        self.sow("intermediates", "attention", weights)
        first, second = weights[:, 0, None, None, :], weights[:, 1, None, None, :]
        return (first * small.astype(wide) + second * large.astype(wide)).astype(x.dtype)
