"""Global multi-head self-attention, as in Transformers and ViT."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.attention.parts.heads import head_features, merge_heads, split_parts
from flaxattn.errors import InputError


class MultiHeadAttention(Mechanism):
    """Multi-head self-attention: in each head, each position takes a mean of all positions' values.

        q_i, k_i, v_i = W_qkv x_i                           split between the heads
        a_ij = softmax_j(q_i . k_j / sqrt(d))               in each head, of d = C / num_heads
        y_i  = W_proj [sum_j a_ij v_j in head 1; ... ]

    Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold,
    Gelly, Uszkoreit, Houlsby, "An Image is Worth 16x16 Words: Transformers for Image Recognition
    at Scale", ICLR 2021, arXiv:2010.11929; the layer is that of Vaswani, Shazeer, Parmar,
    Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, "Attention Is All You Need", NeurIPS 2017,
    arXiv:1706.03762. The positions of a map are the tokens; nothing tells them apart, for ViT adds
    its position embeddings to the map beforehand.

    (N, H, W, C) -> (N, H, W, C) in x's dtype, without x itself: adding it, and the norm before, are
    the surrounding block's. The projections and both products over the map take `dtype` or x's and
    multiply in the platform's default precision, their sums and the softmax are float32 or wider.
    Parameters: qkv kernel (C, 3C), proj kernel (C, C), and their biases.
    Sows the maps (N, num_heads, HW, HW), whose rows sum to one.

    Called with `mask`, (N, HW) booleans, every position attends only to those where it is True,
    such as those that are not padding; where none is True, to all of them alike.

    Fields:
        num_heads: heads, a divisor of C.
        qkv_bias: biases of queries, keys and values.
        query_chunk: positions whose weights exist at one time, or None for all HW of them: with it
            memory grows with HW * query_chunk instead of (HW)^2 (see `attend`).

    Deviation: kernels are drawn as torch's nn.Linear draws them; ViT's authors use Xavier's bounds.

    Raises InputError where `num_heads` does not divide C, for a mask of another shape or dtype, and
    for a `query_chunk` below one.
    """

    num_heads: int = 8
    qkv_bias: bool = True
    query_chunk: int | None = None

    role = "context"
    namings = {
        "timm": (),
        "torch": (
            ("in_proj_weight", "qkv.kernel", "linear"),
            ("in_proj_bias", "qkv.bias"),
            ("out_proj", "proj"),
        ),
    }

    timm = variant(
        "timm's Attention as its vision transformers build it, with qkv_bias; the default."
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        self.require_maps(x)
        batch, height, width, features = x.shape
        depth = head_features(features, self.num_heads)

        dtype = self.dtype or x.dtype
        dense: Callable[..., nn.Dense] = partial(nn.Dense, dtype=dtype, **self.initialisers)

        def softmax(energy: Array) -> Array:
            if mask is not None:
                there = mask.reshape(batch, 1, 1, height * width)
                energy = jnp.where(there, energy, jnp.finfo(energy.dtype).min)
            return jax.nn.softmax(energy)

        if mask is not None and (
            mask.shape != (batch, height * width) or not jnp.issubdtype(mask.dtype, jnp.bool)
        ):
            raise InputError(
                f"a mask of shape {mask.shape} and dtype {mask.dtype} does not say which positions "
                f"to attend to: pass booleans of shape {(batch, height * width)}."
            )
        tokens = x.reshape(batch, height * width, features)
        projected = dense(3 * features, use_bias=self.qkv_bias, name="qkv")(tokens)
        query, key, value = split_parts(projected, 3, self.num_heads)
        context = attend(
            self,
            query,
            key,
            value,
            scale=1 / math.sqrt(depth),
            normalise=softmax,
            query_chunk=self.query_chunk,
        )
        y = dense(features, name="proj")(merge_heads(context.astype(dtype)))
        return y.reshape(x.shape).astype(x.dtype)
