"""Lambda layer: content and positions made into a linear function of the query."""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.blocks import block_means, require_divisor
from flaxattn.attention.parts.heads import head_features
from flaxattn.attention.parts.relative_position import sized_param
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer, require_odd
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.precision import at_least_float32


class LambdaLayer(Mechanism):
    """Lambda layer: each position applies to its queries a matrix made of the others' values.

        lambda_content  = sum_m softmax_m(k_m) v_m^T        one matrix (k, v) for all positions
        lambda_position = sum_m e_(m - n) v_m^T             another for each position n
        y_n             = [(lambda_content + lambda_position)^T q_n in each head]

    Bello, "LambdaNetworks: Modeling Long-Range Interactions Without Attention", ICLR 2021,
    arXiv:2102.08602. No weight between two positions is ever made.

    (N, H, W, C) -> (N, H / strides, W / strides, features) in x's dtype, with the call shape of
    `nn.Conv`; the heads share keys and values. The projection, the correlation with e and the
    lambdas take `dtype` or x's; the softmax over the map and all sums are float32 or wider. All
    products multiply in the platform's default precision.
    Parameters, of k = key_features, v = features / num_heads: qkv kernel (1, 1, C, num_heads * k
    + k + v), no bias; norm_q (num_heads * k) and norm_v (v) normalise queries and values;
    conv_lambda kernel (kernel_size, kernel_size, 1, 1, k) and bias (k,), or pos_emb
    (2H - 1, 2W - 1, k), which belongs to one size of map.
    Sows the normalised keys (N, H, W, k), which sum to one over the map.

    Fields:
        features: channels of the output.
        strides: of the average pooling behind it.
        num_heads: queries of a position, a divisor of `features`.
        key_features: k, the paper's |k|.
        kernel_size: side of the square of positions m around n that e knows, odd; None: all of
            the map.
        qkv_bias: a bias in the projection.
        norm: what normalises queries and values; called as
            norm(param_dtype=..., name=...)(x, train).

    Deviations: the paper's intra-depth |u| is 1. conv_lambda has a bias as in timm, at first zero.

    Raises InputError where `num_heads` does not divide `features`, for an even `kernel_size`, for
    `key_features` below one, where `strides` does not divide the map (torch would cut it), and with
    kernel_size=None on a map of another size than the layer was initialised with.
    """

    features: int
    strides: int = 1
    num_heads: int = 4
    key_features: int = 16
    kernel_size: int | None = 23
    qkv_bias: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

    role = "convolution"
    namings = {"timm": ()}

    timm = variant("timm's LambdaLayer: e knows 9x9 positions.", kernel_size=9)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        batch, height, width, _ = x.shape
        require_divisor("strides", self.strides, height, width)
        depth = self.key_features
        if depth < 1:
            raise InputError(f"key_features={depth} is below one: use 1 or more.")
        values = head_features(self.features, self.num_heads)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        qkv = self.convolution(
            self.num_heads * depth + depth + values, use_bias=self.qkv_bias, dtype=dtype, name="qkv"
        )(x)
        query, key, value = jnp.split(
            qkv, (self.num_heads * depth, (self.num_heads + 1) * depth), axis=-1
        )
        query = self.norm(param_dtype=self.param_dtype, name="norm_q")(query, train)
        query = query.reshape(batch, height, width, self.num_heads, depth)
        value = self.norm(param_dtype=self.param_dtype, name="norm_v")(value, train)
        key = jax.nn.softmax(key.astype(wide), axis=(1, 2))
        self.sow("intermediates", "attention", key)

        if self.kernel_size is None:
            shape = (2 * height - 1, 2 * width - 1, depth)
            init = nn.initializers.normal(0.02)
            table = sized_param(self, "pos_emb", init, shape, self.param_dtype)
            by_position = _correlate(value, table)
        else:
            by_position = _LambdaConv(
                depth, self.kernel_size, self.param_dtype, self.bias_init, name="conv_lambda"
            )(value)
        by_content = jnp.einsum("nhwk,nhwv->nkv", key, value.astype(wide))
        lambdas = (by_position + by_content[:, None, None]).astype(dtype)
        y = jnp.einsum("nhwik,nhwkv->nhwiv", query, lambdas, preferred_element_type=wide)
        y = y.reshape(batch, height, width, self.features)
        return block_means(y, self.strides).astype(x.dtype)


class _LambdaConv(nn.Module):
    """The correlation with e near each position: torch's Conv3d of one channel to `features`."""

    features: int
    kernel_size: int
    param_dtype: Any
    bias_init: Initializer

    @nn.compact
    def __call__(self, value: Array) -> Array:
        size = require_odd(self.kernel_size)
        init = nn.initializers.normal(self.features**-0.5)
        kernel = self.param("kernel", init, (size, size, 1, 1, self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        y = _correlate(value, kernel[:, :, 0, 0])
        return y + bias.astype(y.dtype).reshape(1, 1, 1, -1, 1)


def _correlate(value: Array, table: Array) -> Array:
    """sum_m table[m - n] value_m: (N, H, W, v), (odd, odd, k) -> (N, H, W, k, v); zeros outside.

    A product of matrices with e of all pairs of columns, and of all pairs of rows where the table
    has as many as the map; on larger maps each row meets the rows around it. A convolution of v
    maps of one channel each is the same, but has no channels to multiply at once: it takes ten
    times as long on a CPU, and the TPU's compiler a quarter of an hour.
    """
    _, height, width, _ = value.shape
    size, wide = len(table), at_least_float32(value.dtype)
    by_columns = _of_pairs(table.astype(value.dtype), 1, width)
    if height <= size:
        of_pairs = _of_pairs(by_columns, 0, height)
        return jnp.einsum("nacv,abcdk->nbdkv", value, of_pairs, preferred_element_type=wide)
    padded = jnp.pad(value, ((0, 0), (size // 2, size // 2), (0, 0), (0, 0)))
    around = jnp.stack([padded[:, first : first + height] for first in range(size)], axis=2)
    return jnp.einsum("nhrcv,rcdk->nhdkv", around, by_columns, preferred_element_type=wide)


def _of_pairs(table: Array, axis: int, size: int) -> Array:
    """(..., odd, ...) -> (..., size, size, ...): entry (m, n) is the one for m - n, or zero."""
    outside = max(size - 1 - table.shape[axis] // 2, 0)
    pads = [(0, 0)] * table.ndim
    pads[axis] = (outside, outside)
    table = jnp.pad(table, pads)
    relative = np.arange(size)[:, None] - np.arange(size) + table.shape[axis] // 2
    return jnp.take(table, relative, axis=axis)
