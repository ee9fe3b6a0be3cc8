"""Article 3's attention residual block."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.dual_attention import DualAttention
from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.maps import require_maps
from flaxattn.layers.conv import Initializer, torch_default


class AttentionResidual(Mechanism):
    """Attention residual block: x plus a convolution of x under dual attention.

        y = x + conv3x3(attn(x))

    Article 3's AttnResBlock; it has no paper, normalisation or activation. It keeps the size and
    the channels, so it can follow any block, but replace none that changes either.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the convolution computes in `dtype` or x's.
    Parameters: attn, a DualAttention; conv kernel (3, 3, C, C) and bias.
    Its gates are sown by `attn`.

    Fields:
        reduction: of the channel gate. The article takes this argument and ignores it, so its
            weights always have the default 8.

    Deviation: biases start at zero, where torch draws them from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Raises InputError where `reduction` leaves no channel.
    """

    reduction: int = 8
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_default
    bias_init: Initializer = nn.initializers.zeros

    role = "context"
    variants = ("article_s3",)
    namings = {"articles": ()}

    article_s3 = variant("Article 3's AttnResBlock; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        require_maps(x)
        attn = DualAttention(
            reduction=self.reduction,
            dtype=self.dtype,
            **self.initialisers,
            name="attn",
        )
        conv = self.convolution(
            x.shape[-1], kernel_size=3, dtype=self.dtype or x.dtype, name="conv"
        )
        return x + conv(attn(x, train)).astype(x.dtype)
