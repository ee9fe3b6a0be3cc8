"""Layers in a convolution's place, written plainly."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.plain.ops import batch_norm, conv, dense, mean, mlp, row, wide


def sk(params: Any, x: Array) -> Array:
    branches = [
        jax.nn.relu(batch_norm(path["bn"], conv(path["conv"], x, dilation=dilation, groups=32)))
        for path, dilation in ((params["paths_0"], 1), (params["paths_1"], 2))
    ]
    attn = params["attn"]
    hidden = over_batch(attn["bn"], dense(attn["fc_reduce"], mean(branches[0] + branches[1])))
    logits = dense(attn["fc_select"], jax.nn.relu(hidden)).reshape(len(x), 2, -1)
    return mixture(jax.nn.softmax(logits, 1), branches)


def over_batch(params: Any, z: Array) -> Array:
    """A batch norm of vectors, about the mean: pooled ones differ little from each other."""
    z = (z - jnp.mean(z, 0)[None]) * jax.lax.rsqrt(jnp.var(z, 0) + 1e-5)[None]
    return z * row(params["scale"], 2) + row(params["bias"], 2)


def mixture(weights: Array, branches: list[Array]) -> Array:
    """sum_i weights_i * branches_i of weights (N, branches, C)."""
    shares = [weights[:, i, None, None] for i in range(len(branches))]
    y = sum(share * wide(u) for share, u in zip(shares, branches, strict=True))
    return jnp.asarray(y).astype(branches[0].dtype)


def split_attention(params: Any, x: Array) -> Array:
    u = jax.nn.relu(batch_norm(params["bn0"], conv(params["conv"], x, groups=2)))
    splits = jnp.split(u, 2, -1)
    hidden = over_batch(params["bn1"], dense(params["fc1"], mean(splits[0] + splits[1])))
    logits = dense(params["fc2"], jax.nn.relu(hidden)).reshape(len(x), 2, -1)
    return mixture(jax.nn.softmax(logits, 1), splits)


def pyramid_squeeze(params: Any, x: Array) -> Array:
    branches = [
        conv(params[f"conv{i + 1}"], x, groups=groups) for i, groups in enumerate((1, 4, 8, 16))
    ]
    gates = jax.nn.sigmoid(mlp(params, jnp.stack([mean(u) for u in branches], 1)))
    weights = jax.nn.softmax(gates, 1)
    parts = [wide(u) * weights[:, i, None, None] for i, u in enumerate(branches)]
    return jnp.concatenate(parts, -1).astype(x.dtype)


def cond_conv(params: Any, x: Array) -> Array:
    routing = jax.nn.sigmoid(dense(params["routing_fn"], mean(x)))
    kernels = jnp.einsum("ne,eijco->nijco", routing, params["kernels"])
    return own_convolutions(x, kernels)


def dynamic_conv(params: Any, x: Array) -> Array:
    weights = jax.nn.softmax(mlp(params, mean(x)))
    kernels = jnp.einsum("nk,kijco->nijco", weights, params["kernels"])
    biases = weights @ params["biases"]
    return own_convolutions(x, kernels) + biases[:, None, None].astype(x.dtype)


def own_convolutions(x: Array, kernels: Array) -> Array:
    """Each sample convolved with its own kernel."""
    return jax.vmap(lambda x, kernel: conv({"kernel": kernel}, x[None])[0])(x, kernels)


def lambda_(params: Any, x: Array) -> Array:
    n, h, w, c = x.shape
    query, key, value = jnp.split(conv(params["qkv"], x), (64, 80), -1)
    query = batch_norm(params["norm_q"], query).reshape(n, h * w, 4, 16)
    value = batch_norm(params["norm_v"], value).reshape(n, h * w, c // 4)
    key = jax.nn.softmax(wide(key), (1, 2)).astype(x.dtype).reshape(n, h * w, 16)
    near, table = params["conv_lambda"], params["conv_lambda"]["kernel"][:, :, 0, 0]
    rows, columns = (
        np.arange(size) - np.arange(size)[:, None] + len(table) // 2 for size in (h, w)
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    known = (rows >= 0) & (rows < len(table)) & (columns >= 0) & (columns < len(table))
    table = jnp.where(known[..., None], table[rows, columns], 0).reshape(h * w, h * w, 16)
    by_position = jnp.einsum("pmk,nmv->npkv", table.astype(x.dtype), value)
    by_content = jnp.einsum("nmk,nmv->nkv", key, value)
    bias = near["bias"].astype(x.dtype)[None, None, :, None]
    y = jnp.einsum("npik,npkv->npiv", query, by_position + bias + by_content[:, None])
    return y.reshape(n, h, w, c)


def halo(params: Any, x: Array) -> Array:
    n, h, w, c = x.shape
    depth, window = c // 8, 14
    query = conv(params["q"], x).reshape(n, h // 8, 8, w // 8, 8, 8, depth)
    kv = jnp.pad(conv(params["kv"], x), ((0, 0), (3, 3), (3, 3), (0, 0)))
    blocks = [
        [kv[:, top : top + window, left : left + window] for left in range(0, w, 8)]
        for top in range(0, h, 8)
    ]
    kv = jnp.stack([jnp.stack(line, 1) for line in blocks], 1)
    key, value = jnp.split(kv.reshape(*kv.shape[:-1], 8, 2 * depth), 2, -1)
    energy = jnp.einsum(
        "nyixjgd,nyxuvgd->nyxgijuv", query, key, preferred_element_type=jnp.float32
    ) / math.sqrt(depth)
    energy += relative_energies(params["pos_embed"], "nyixjgd", "nyxg", query, window)
    weights = jax.nn.softmax(energy, (-2, -1)).astype(x.dtype)
    return jnp.einsum("nyxgijuv,nyxuvgd->nyixjgd", weights, value).reshape(n, h, w, c)


def relative_energies(params: Any, query_axes: str, batch: str, query: Array, keys: int) -> Array:
    """Of keys (u, v) by their row and column relative to those, (i, j), of the query."""
    total = 0
    for name, table_axes, axis in (("height_rel", "iud", "u"), ("width_rel", "jvd", "v")):
        queries = query.shape[query_axes.index(table_axes[0])]
        relative = np.arange(keys) - np.arange(queries)[:, None] + keys - 1
        energy = jnp.einsum(
            f"{query_axes},{table_axes}->{batch}ij{axis}",
            query,
            params[name].astype(query.dtype)[relative],
            preferred_element_type=jnp.float32,
        )
        total += jnp.expand_dims(energy, -1 if axis == "u" else -2)
    return total


def botnet(params: Any, x: Array) -> Array:
    n, h, w, c = x.shape
    qkv = conv(params["qkv"], x).reshape(n, h, w, 3, 4, c // 4)
    query, key, value = (qkv[:, :, :, i] for i in range(3))
    energy = jnp.einsum("nijgd,nuvgd->ngijuv", query, key, preferred_element_type=jnp.float32)
    energy += relative_energies(params["pos_embed"], "nijgd", "ng", query, h)
    weights = jax.nn.softmax(energy / math.sqrt(c // 4), (-2, -1)).astype(x.dtype)
    return jnp.einsum("ngijuv,nuvgd->nijgd", weights, value).reshape(n, h, w, c)


PLAIN = {
    "botnet": botnet,
    "cond_conv": cond_conv,
    "dynamic_conv": dynamic_conv,
    "halo": halo,
    "lambda": lambda_,
    "pyramid_squeeze": pyramid_squeeze,
    "sk": sk,
    "split_attention": split_attention,
}
