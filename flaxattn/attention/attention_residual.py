"""Article 3's attention residual block."""

from flax import linen as nn
from jax import Array

from flaxattn.attention.dual_attention import DualAttention
from flaxattn.attention.mechanism import Mechanism, variant


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

    Raises InputError where `reduction` leaves no channel.
    """

    reduction: int = 8

    role = "context"
    namings = {"articles": ()}

    article_s3 = variant("Article 3's AttnResBlock; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
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
