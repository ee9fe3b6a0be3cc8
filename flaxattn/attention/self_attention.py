"""Self-attention over all positions of a map, as in SAGAN."""

from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.layers.widths import reduced_features


class SelfAttention(Mechanism):
    """Self-attention: each position adds a mean of all positions' values, weighted by likeness.

        s_ij  = (Wg x_i) . (Wf x_j)             the paper's g, f are query and key here
        a_ij  = exp(s_ij) / sum_k exp(s_ik)     (Eq. 1)
        y_i   = gamma * sum_j a_ij Wh x_j + x_i (Eq. 2, 3)

    There is no 1 / sqrt(d), and gamma starts at zero: at first the layer is the identity.

    Zhang, Goodfellow, Metaxas, Odena, "Self-Attention Generative Adversarial Networks", ICML 2019,
    arXiv:1805.08318; the position attention of DANet (arXiv:1809.02983) is the same function, and
    `ChannelAffinity` is the other half of that network.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the projections and both products over the map take
    `dtype` or x's and multiply in the platform's default precision (see `Conv`), their sums and the
    softmax are float32 or wider. Parameters: gamma (1,); query_conv and key_conv kernels
    (1, 1, C, C / reduction), value_conv kernel (1, 1, C, C), and their biases.
    Sows the map (N, HW, HW): row i holds the weights a_i of position i, and sums to one.

    Fields:
        reduction: C / width of queries and keys, which is rounded down.
        query_chunk: positions whose weights exist at one time, or None for all HW of them: with it
            memory grows with HW * query_chunk instead of (HW)^2 (see `attend`).

    Deviations: the paper's code pools keys and values by two, gives values half the channels and
    normalises the weights spectrally; this is article 1's layer, which does none of it.

    Raises InputError where `reduction` leaves no channel, and for a `query_chunk` below one.
    """

    reduction: int = 8
    query_chunk: int | None = None

    role = "context"
    namings = {"articles": (), "danet": ()}
    neutral = Neutral(("gamma",))

    article_s1 = variant("Article 1's SelfAttention; the default.")
    danet = variant(
        """DANet's position attention: its authors' PAM_Module, which is the default.

        Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR
        2019, arXiv:1809.02983.
        """,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        batch, height, width, features = x.shape
        positions = height * width
        hidden = reduced_features(features, self.reduction)
        dtype = self.dtype or x.dtype

        def project(features: int, name: str) -> Array:
            conv = self.convolution(features, dtype=dtype, name=name)
            return conv(x).reshape(batch, positions, features)

        query = project(hidden, "query_conv")
        key = project(hidden, "key_conv")
        value = project(features, "value_conv")
        gamma = self.param("gamma", nn.initializers.zeros, (1,), self.param_dtype)

        context = attend(self, query, key, value, query_chunk=self.query_chunk)
        context = gamma[0].astype(context.dtype) * context
        return x + context.astype(x.dtype).reshape(x.shape)
