"""Multi-head self-attention with relative positions in a convolution's place, as in BoTNet."""

import math
from dataclasses import KW_ONLY

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.attention.parts.blocks import block_means, require_divisor
from flaxattn.attention.parts.heads import head_features, key_features, merge_heads, split_heads
from flaxattn.attention.parts.relative_position import RelativePosition
from flaxattn.layers.conv import Initializer


class BottleneckSelfAttention(Mechanism):
    """Self-attention over all positions, by content and by relative position, instead of a 3x3.

        a_ij = softmax_j((q_i . k_j + q_i . (r_row(j) - row(i) + r_col(j) - col(i))) / sqrt(d))
        y_i  = [sum_j a_ij v_j in each head], then mean over strides x strides

    Srinivas, Lin, Parmar, Shlens, Abbeel, Vaswani, "Bottleneck Transformers for Visual
    Recognition", CVPR 2021, arXiv:2101.11605.

    (N, H, W, C) -> (N, H / strides, W / strides, features) in x's dtype, with the call shape of
    `nn.Conv`. The projection and the products over the map take `dtype` or x's and multiply in the
    platform's default precision, their sums and the softmax are float32 or wider.
    Parameters: qkv kernel (1, 1, C, 2 * num_heads * d + features), no bias; pos_embed height_rel
    (2H - 1, d) and width_rel (2W - 1, d), which all heads share. These belong to one size of map.
    Sows the maps (N, num_heads, HW, HW), whose rows sum to one.

    Fields:
        features: channels of the output, and of the values of all heads together.
        strides: of the average pooling behind the attention.
        num_heads: heads, a divisor of `features`.
        qk_ratio: channels of all queries over `features`, rounded to multiples of 8 as timm does.
        key_features: d, if given; then `qk_ratio` is not used.
        qkv_bias: a bias in the projection.
        scale_pos_embed: whether 1 / sqrt(d) scales the relative energies too, as in the authors'
            published function; timm leaves them as they are. A file of weights does not say it.
        query_chunk: positions whose weights exist at one time, or None for all HW of them: with it
            memory grows with HW * query_chunk instead of (HW)^2 (see `attend`).

    Raises InputError where `num_heads` does not divide `features`, `qk_ratio` leaves a head no
    channel, `strides` does not divide the map (torch would cut it), on a map of another size than
    the layer was initialised with, and for a `query_chunk` below one.
    """

    features: int
    strides: int = 1
    num_heads: int = 4
    qk_ratio: float = 1.0
    key_features: int | None = None
    qkv_bias: bool = False
    scale_pos_embed: bool = True
    query_chunk: int | None = None
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

    role = "convolution"
    namings = {"timm": ()}

    timm = variant(
        "timm's BottleneckAttn: the relative energies are not scaled.",
        scale_pos_embed=False,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        batch, height, width, _ = x.shape
        require_divisor("strides", self.strides, height, width)
        heads = self.num_heads
        head_features(self.features, heads)
        depth = key_features(self.features, heads, self.qk_ratio, self.key_features)
        scale = 1 / math.sqrt(depth)

        qkv = self.convolution(
            2 * heads * depth + self.features,
            use_bias=self.qkv_bias,
            dtype=self.dtype or x.dtype,
            name="qkv",
        )(x).reshape(batch, height * width, -1)
        query, key, value = (
            split_heads(part, heads)
            for part in jnp.split(qkv, (heads * depth, 2 * heads * depth), axis=-1)
        )
        by_row, by_column = RelativePosition(param_dtype=self.param_dtype, name="pos_embed")(
            query.reshape(batch, heads, height, width, depth), (height, width)
        )
        if self.scale_pos_embed:
            by_row, by_column = by_row * scale, by_column * scale
        context = attend(
            self,
            query,
            key,
            value,
            scale=scale,
            offsets=(by_row, by_column),
            query_chunk=self.query_chunk,
        )
        y = merge_heads(context).reshape(batch, height, width, self.features)
        return block_means(y, self.strides).astype(x.dtype)
