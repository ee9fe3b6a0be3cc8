"""Self-attention within blocks and their halos in a convolution's place, as in HaloNet."""

import math
from dataclasses import KW_ONLY
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.attention.parts.blocks import block_means, cut, cut_with_halo, join, require_divisor
from flaxattn.attention.parts.heads import head_features, key_features, merge_heads, split_heads
from flaxattn.attention.parts.relative_position import RelativePosition
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer

LARGEST_HALO = 128  # a block's neighbours are laid side by side, one by one


class HaloAttention(Mechanism):
    """Blocked local self-attention: a block's positions attend to the block and a halo around it.

        a_ij = softmax_j(q_i . k_j / sqrt(d) + q_i . (r_row(j) - row(i) + r_col(j) - col(i)))
        y_i  = [sum_j a_ij v_j in each head],  j in the block of i and halo_size around it

    Vaswani, Ramachandran, Srinivas, Parmar, Hechtman, Shlens, "Scaling Local Self-Attention for
    Parameter Efficient Visual Backbones", CVPR 2021, arXiv:2103.12731.

    (N, H, W, C) -> (N, H / strides, W / strides, features) in x's dtype, with the call shape of
    `nn.Conv`. The projections and both products take `dtype` or x's and multiply in the platform's
    default precision, their sums and the softmax are float32 or wider. Memory grows with H * W.
    Parameters, of w = block_size + 2 * halo_size: q kernel (1, 1, C, num_heads * d), kv kernel
    (1, 1, C, num_heads * d + features), no biases; pos_embed height_rel and width_rel (2w - 1, d),
    which all heads share.
    Sows the weights (N, num_heads, blocks, queries of a block, w^2), which sum to one.

    Beyond the map's edge keys and values are zeros and are not masked, as in timm: they take part
    in the softmax with the energy of their relative position alone, and add nothing to the mean.

    Fields:
        features: channels of the output, and of the values of all heads together.
        strides: of the queries: every strides-th position of a block asks.
        num_heads: heads, a divisor of `features`.
        block_size, halo_size: of the blocks, which must tile the map, and of what is around each.
        qk_ratio: channels of all queries over `features`, rounded to multiples of 8 as timm does.
        key_features: d, if given; then `qk_ratio` is not used.
        qkv_bias: biases in both projections.
        average_down: stride by average pooling of the output instead; also done where `strides`
            does not divide `block_size`.
        scale_pos_embed: whether 1 / sqrt(d) scales the relative energies too.

    Deviations: the paper does not say how energies are scaled, nor how positions count under
    strides; both are timm's. With strided queries, row(i) and col(i) count the asking positions,
    not those of the map.

    Raises InputError where `num_heads` does not divide `features`, `qk_ratio` leaves a head no
    channel, `block_size` or `strides` does not divide the map, and for a `halo_size` outside 0 to
    128.
    """

    features: int
    strides: int = 1
    num_heads: int = 8
    block_size: int = 8
    halo_size: int = 3
    qk_ratio: float = 1.0
    key_features: int | None = None
    qkv_bias: bool = False
    average_down: bool = False
    scale_pos_embed: bool = False
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

    role = "convolution"
    namings = {"timm": ()}

    timm = variant("timm's HaloAttn; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        _, height, width, _ = x.shape
        require_divisor("block_size", self.block_size, height, width)
        require_divisor("strides", self.strides, height, width)
        if not 0 <= self.halo_size <= LARGEST_HALO:
            raise InputError(f"halo_size={self.halo_size} must be 0 to {LARGEST_HALO}, such as 3.")
        heads = self.num_heads
        values = head_features(self.features, heads)
        depth = key_features(self.features, heads, self.qk_ratio, self.key_features)
        window = self.block_size + 2 * self.halo_size
        pooled = self.average_down or self.block_size % self.strides > 0
        step = 1 if pooled else self.strides
        block = self.block_size // step
        scale = 1 / math.sqrt(depth)

        conv = partial(self.convolution, use_bias=self.qkv_bias, dtype=self.dtype or x.dtype)

        def heads_first(blocks: Array) -> Array:
            return jnp.moveaxis(split_heads(blocks, heads), 2, 1)

        query = heads_first(cut(conv(heads * depth, strides=step, name="q")(x), block))
        key_value = conv(heads * (depth + values), name="kv")(x)
        # Each head's keys and values lie side by side.
        key, value = jnp.split(
            heads_first(cut_with_halo(key_value, self.block_size, self.halo_size)), (depth,), -1
        )
        by_row, by_column = RelativePosition(param_dtype=self.param_dtype, name="pos_embed")(
            query.reshape(*query.shape[:-2], block, block, depth), (window, window)
        )
        if self.scale_pos_embed:
            by_row, by_column = by_row * scale, by_column * scale
        context = attend(self, query, key, value, scale=scale, offsets=(by_row, by_column))
        y = join(merge_heads(jnp.moveaxis(context, 1, 2)), height // step, width // step)
        return block_means(y, self.strides if pooled else 1).astype(x.dtype)
