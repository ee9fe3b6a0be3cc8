"""Generalized attention: likeness, key content and relative position, each to be switched on."""

import math
from dataclasses import KW_ONLY
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.resize import resize_bilinear

lecun_uniform: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

WAVE_LENGTH = 1000
MOST_WAVES = 2**16


class GeneralizedAttention(Mechanism):
    """Generalized attention: weights from up to four terms, of content and relative position.

        s_ij = q_i . k_j + q_i . r_ij + u . k_j + v . r_ij      (Eq. 2 to 4; E1 to E4)
        y    = x + gamma * proj([sum_j softmax_j(s_ij) v_j of each head])

    with q, k, v 1x1 convolutions of x, u and v learned vectors of each head, and r_ij projected
    sines and cosines of the distances in columns and in rows between i and j:

        r_ij = (Wx e(column_i - column_j) + Wy e(row_i - row_j)) / sqrt(2)
        e(d) = [sin(d / w_f), cos(d / w_f)] with w_f = 1000^(4 f / P) for f = 0 ... P / 4 - 1

    There is no 1 / sqrt(d), and gamma starts at zero: at first the layer is the identity.

    Zhu, Cheng, Zhang, Lin, Dai, "An Empirical Study of Spatial Attention Mechanisms in Deep
    Networks", ICCV 2019, arXiv:1904.05873; also known as empirical attention.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the convolutions and both products over the map take
    `dtype` or x's and multiply in the platform's default precision (see `Conv`), their sums and the
    softmax are float32 or wider. Parameters, d being floor(C / heads): query_conv, key_conv,
    value_conv kernels (1, 1, C, heads * d); appr_geom_fc_x, appr_geom_fc_y kernels
    (1, 1, P / 2, heads * d); appr_bias (u) and geom_bias (v) (heads * d,); proj_conv kernel
    (1, 1, heads * d, C) and bias; gamma (1,). Only what the terms need is there.
    Sows the weights (N, heads, queries, keys).

    Fields:
        attention_type: which terms there are, in the order above, as four digits 0 or 1; "0010"
            gives all positions the same weights, and costs least.
        num_heads: heads. Where it does not divide C, the last C - heads * d channels are unused.
        position_embedding_dim: P, or None for C.
        position_magnitude: multiplies all distances.
        q_stride: attend at every so many-th row and column only, and resize the output bilinearly.
        kv_stride: take keys and values from every so many-th row and column only.
        query_chunk: positions whose weights exist at one time, or None for all of them (see
            `attend`).

    Deviations from mmcv: its spatial_range, which forbids keys farther than that, is left out; the
    mask exists for 256 and 512 channels only. With the second term but not the fourth, such as
    "0100", mmcv gives row distances to the query of the transposed position, and fails on maps that
    are not square; here the terms are the equation's. mmdetection uses "1111" and "0010" alone.

    Raises InputError for other than four digits or no term, for more heads than channels, for P
    that four does not divide, where there is a position term, and for strides and a `query_chunk`
    below one.
    """

    attention_type: str = "1111"
    num_heads: int = 8
    position_embedding_dim: int | None = None
    position_magnitude: float = 1.0
    q_stride: int = 1
    kv_stride: int = 2
    query_chunk: int | None = None
    _: KW_ONLY
    kernel_init: Initializer = lecun_uniform

    role = "context"
    namings = {
        "mmcv": (
            ("appr_geom_fc_x", "appr_geom_fc_x", "linear"),
            ("appr_geom_fc_y", "appr_geom_fc_y", "linear"),
        )
    }
    neutral = Neutral(("gamma",))

    mmcv = variant(
        """mmcv's GeneralizedAttention as it is built by default: nine heads; mmdetection's
        configurations of the paper's experiments have eight.""",
        num_heads=9,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        content, position, saliency, bias = self._terms()
        if features < self.num_heads:
            raise InputError(
                f"num_heads={self.num_heads} leaves no channel of {features} for each: use at most "
                f"{features}."
            )
        per_head = features // self.num_heads
        hidden = self.num_heads * per_head
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        queries = x[:, :: self.q_stride, :: self.q_stride]
        sources = x[:, :: self.kv_stride, :: self.kv_stride]
        size, kv_size = queries.shape[1:3], sources.shape[1:3]
        conv = partial(self.convolution, dtype=dtype)

        def by_head(maps: Array, name: str) -> Array:
            """(N, h, w, C) -> (N, heads, h * w, d)."""
            maps = conv(hidden, use_bias=False, name=name)(maps)
            return maps.reshape(x.shape[0], -1, self.num_heads, per_head).swapaxes(1, 2)

        def vector(name: str) -> Array:
            """(1, heads, 1, d), as mmcv draws it."""
            bound = (2 * per_head) ** -0.5

            def init(key, shape, dtype):
                return jax.random.uniform(key, shape, dtype, -bound, bound)

            drawn = self.param(name, init, (hidden,), self.param_dtype)
            return drawn.astype(dtype).reshape(1, self.num_heads, 1, per_head)

        # Weights are the same for all positions if nothing of theirs is in any term.
        length = math.prod(size) if content or position or bias else 1
        projected = by_head(queries, "query_conv") if content or position else None

        def of_query(has_query: bool, name: str | None) -> Array:
            """What the key, or the relative position, is multiplied with."""
            parts = [projected] if projected is not None and has_query else []
            parts += [vector(name)] if name else []
            return jnp.broadcast_to(sum(parts), (x.shape[0], self.num_heads, length, per_head))

        if content or saliency:
            query = of_query(content, "appr_bias" if saliency else None)
            key = by_head(sources, "key_conv")
        else:
            query, key = (
                jnp.zeros((x.shape[0], self.num_heads, n, 0), dtype)
                for n in (length, math.prod(kv_size))
            )
        energies = []
        if position or bias:
            by = of_query(position, "geom_bias" if bias else None)
            by = by.reshape(*by.shape[:2], *size, per_head)
            for axis, name, product in (
                (0, "appr_geom_fc_y", "nhyxd,ykhd->nhyxk"),
                (1, "appr_geom_fc_x", "nhyxd,xkhd->nhyxk"),
            ):
                embedding = self._embedding(size[axis], kv_size[axis], features)
                relative = conv(hidden, use_bias=False, name=name)(
                    jnp.asarray(embedding, dtype)[None]
                )
                relative = relative.reshape(size[axis], kv_size[axis], self.num_heads, per_head)
                energy = jnp.einsum(product, by, relative, preferred_element_type=wide)
                energy = energy.reshape(x.shape[0], self.num_heads, length, -1)
                energies.append(energy / math.sqrt(2))

        y = attend(
            self,
            query,
            key,
            by_head(sources, "value_conv"),
            offsets=energies,
            query_chunk=self.query_chunk,
        ).astype(dtype)
        size = size if length > 1 else (1, 1)
        y = conv(features, name="proj_conv")(y.swapaxes(1, 2).reshape(x.shape[0], *size, hidden))
        y = y.astype(wide)
        if self.q_stride > 1:
            y = resize_bilinear(y, x.shape[1:3])
        gamma = self.param("gamma", nn.initializers.zeros, (1,), self.param_dtype)
        return x + jnp.broadcast_to(gamma[0].astype(wide) * y, x.shape).astype(x.dtype)

    def _terms(self) -> list[bool]:
        """Whether each of the four terms is there."""
        kind = self.attention_type
        if len(kind) != 4 or not set(kind) <= {"0", "1"} or kind == "0000":
            raise InputError(
                f"attention_type={kind!r} does not say which of four terms to use: pass four "
                f"digits 0 or 1, at least one of them 1, such as '0010'."
            )
        for field in ("q_stride", "kv_stride", "num_heads"):
            value = getattr(self, field)
            if value < 1:
                raise InputError(f"{field}={value} is below one: use 1 or more.")
        return [digit == "1" for digit in kind]

    def _embedding(self, length: int, kv_length: int, features: int) -> np.ndarray:
        """Sines and cosines of all distances along one axis: (length, kv_length, P / 2)."""
        size = features if self.position_embedding_dim is None else self.position_embedding_dim
        if not 4 <= size <= MOST_WAVES or size % 4:
            nearest = min(max(4, size // 4 * 4), MOST_WAVES)
            raise InputError(
                f"{size} must be a multiple of 4 up to {MOST_WAVES}, which sines and cosines of "
                f"rows and of columns share evenly: set position_embedding_dim to one, such as "
                f"{nearest}."
            )
        there = np.arange(length)[:, None] * self.q_stride
        distance = (there - np.arange(kv_length) * self.kv_stride) * self.position_magnitude
        waves = WAVE_LENGTH ** (4 / size * np.arange(size // 4))
        angles = distance[..., None] / waves
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
