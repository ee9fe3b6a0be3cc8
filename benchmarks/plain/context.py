"""Layers that mix positions by their likeness, written plainly."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.plain.ops import batch_norm, conv, wide


def attend(query: Array, key: Array, value: Array, scale: float = 1.0, offsets: Any = 0) -> Array:
    """Over the positions of (..., P, d)."""
    energy = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(energy * scale + offsets)
    return jnp.einsum("...qk,...kc->...qc", weights.astype(value.dtype), value)


def flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def self_attention(params: Any, x: Array) -> Array:
    query, key, value = (
        flat(conv(params[name], x)) for name in ("query_conv", "key_conv", "value_conv")
    )
    context = attend(query, key, value).reshape(x.shape)
    return (wide(x) + params["gamma"][0] * wide(context)).astype(x.dtype)


def non_local(params: Any, x: Array) -> Array:
    query, key, value = (flat(conv(params[name], x)) for name in ("theta", "phi", "g"))
    y = attend(query, key, value).reshape(*x.shape[:3], -1)
    return x + batch_norm(params["bn"], conv(params["out"], y))


def tokens(params: Any, z: Array) -> Array:
    """A dense layer on (N, P, C), in its dtype."""
    return z @ params["kernel"].astype(z.dtype)[None] + params["bias"].astype(z.dtype)[None, None]


def heads_attend(params: Any, z: Array, heads: int, offsets: Any = 0) -> Array:
    """Multi-head self-attention of (N, P, C)."""
    depth = z.shape[-1] // heads
    qkv = tokens(params["qkv"], z).reshape(*z.shape[:2], 3, heads, depth)
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    y = attend(query, key, value, 1 / math.sqrt(depth), offsets)
    return tokens(params["proj"], y.swapaxes(1, 2).reshape(z.shape))


def multi_head(params: Any, x: Array) -> Array:
    return heads_attend(params, flat(x), 8).reshape(x.shape)


def window(params: Any, x: Array) -> Array:
    n, h, w, c = x.shape
    windows = x.reshape(n, h // 7, 7, w // 7, 7, c).swapaxes(2, 3)
    rows, columns = (grid.reshape(-1) for grid in np.indices((7, 7)))
    about = (rows[:, None] - rows + 6) * 13 + columns[:, None] - columns + 6
    bias = params["relative_position_bias_table"][about].transpose(2, 0, 1)
    y = heads_attend(params, windows.reshape(-1, 49, c), c // 32, bias[None])
    return y.reshape(windows.shape).swapaxes(2, 3).reshape(x.shape)


def generalized(params: Any, x: Array) -> Array:
    n, h, w, c = x.shape
    depth = c // 8
    sources = x[:, ::2, ::2]

    def by_head(name: str, maps: Array) -> Array:
        return flat(conv(params[name], maps)).reshape(n, -1, 8, depth).swapaxes(1, 2)

    query, key = by_head("query_conv", x), by_head("key_conv", sources)
    of_content = query + vector(params["appr_bias"], x)
    of_position = (query + vector(params["geom_bias"], x)).reshape(n, 8, h, w, depth)
    rows = distances(params["appr_geom_fc_y"], h, x)
    columns = distances(params["appr_geom_fc_x"], w, x)
    by_row = jnp.einsum("nhyxd,ykhd->nhyxk", of_position, rows)
    by_column = jnp.einsum("nhyxd,xkhd->nhyxk", of_position, columns)
    offsets = wide(by_row)[..., None] + wide(by_column)[..., None, :]
    offsets = offsets.reshape(n, 8, h * w, -1) / math.sqrt(2)
    context = attend(of_content, key, by_head("value_conv", sources), offsets=offsets)
    y = conv(params["proj_conv"], context.swapaxes(1, 2).reshape(x.shape))
    return (wide(x) + params["gamma"][0] * wide(y)).astype(x.dtype)


def vector(params: Array, x: Array) -> Array:
    return params.astype(x.dtype).reshape(1, 8, 1, -1)


def distances(params: Any, length: int, x: Array) -> Array:
    """Of each of `length` queries to every second of them: (length, keys, 8, d)."""
    waves = 1000 ** (4 / x.shape[-1] * np.arange(x.shape[-1] // 4))
    angles = (np.arange(length)[:, None] - np.arange(0, length, 2))[..., None] / waves
    embedding = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], -1), x.dtype)
    return conv(params, embedding[None]).reshape(*angles.shape[:2], 8, -1)


def criss_cross(params: Any, x: Array) -> Array:
    h = x.shape[1]
    for _ in range(2):
        query, key, value = (
            conv(params[name], x) for name in ("query_conv", "key_conv", "value_conv")
        )
        column = jnp.einsum("nijd,ngjd->nijg", query, key, preferred_element_type=jnp.float32)
        row = jnp.einsum("nijd,nivd->nijv", query, key, preferred_element_type=jnp.float32)
        column = jnp.where(np.eye(h, dtype=bool)[None, :, None], -jnp.inf, column)
        weights = jax.nn.softmax(jnp.concatenate([column, row], -1)).astype(x.dtype)
        context = jnp.einsum("nijg,ngjc->nijc", weights[..., :h], value)
        context += jnp.einsum("nijv,nivc->nijc", weights[..., h:], value)
        x = (wide(x) + params["gamma"][0] * wide(context)).astype(x.dtype)
    return x


def double_attention(params: Any, x: Array) -> Array:
    values = conv(params["convA"], x)
    gather = jax.nn.softmax(wide(conv(params["convB"], x)), (1, 2)).astype(x.dtype)
    distribute = jax.nn.softmax(wide(conv(params["convV"], x)), -1).astype(x.dtype)
    descriptors = jnp.einsum("nhwm,nhwk->nmk", values, gather)
    return x + conv(params["proj"], jnp.einsum("nmk,nhwk->nhwm", descriptors, distribute))


def bat(params: Any, x: Array) -> Array:
    n, h, w, _ = x.shape
    ba = params["ba"]
    u = norm_relu(params["conv1"], x)
    guide = norm_relu(ba["conv1"], u)
    rows = jnp.max(guide.reshape(n, 7, -1, 4), 2)
    columns = jnp.max(guide.reshape(n, h, 7, w // 7, 4), (1, 3))

    def weights(params: Any, maxima: Array, axis: int) -> Array:
        kernel = params["kernel"].astype(x.dtype).reshape(28, -1)
        logits = wide(maxima.reshape(n, 28) @ kernel) + params["bias"][None]
        gates = jax.nn.sigmoid(logits.reshape(n, 4, 7, 7))
        return (gates / jnp.sum(gates, axis, keepdims=True)).astype(x.dtype)

    rows, columns = weights(ba["conv_p"], rows, -1), weights(ba["conv_q"], columns, -2)
    blocks = u.reshape(n, 7, h // 7, 7, w // 7, 4, -1)
    mixed = jnp.einsum("ngij,njakbgc->niakbgc", rows, blocks)
    mixed = jnp.einsum("niakbgc,ngkl->nialbgc", mixed, columns).reshape(u.shape)
    return x + norm_relu(params["conv2"], norm_relu(ba["conv2"], mixed))


def norm_relu(params: Any, x: Array) -> Array:
    return jax.nn.relu(batch_norm(params["bn"], conv(params["conv"], x)))


def psanet(params: Any, x: Array) -> Array:
    _, h, w, _ = x.shape

    def layer(name: str, x: Array) -> Array:
        return jax.nn.relu(batch_norm(params[f"{name}_1"], conv(params[f"{name}_0"], x)))

    rows, columns = (grid.reshape(-1) for grid in np.indices((h, w)))
    # [p, q]: which of p's logits is about q.
    about = (rows - rows[:, None] + h - 1) * (2 * w - 1) + columns - columns[:, None] + w - 1
    contexts = []
    for suffix in ("", "_p"):
        reduced = layer(f"reduce{suffix}", x)
        logits = flat(conv(params[f"attention{suffix}_3"], layer(f"attention{suffix}", reduced)))
        energy = wide(jnp.take_along_axis(logits, about[None], 2))
        weights = jax.nn.softmax(energy.swapaxes(1, 2) if suffix else energy).astype(x.dtype)
        contexts.append((weights @ flat(reduced)).reshape(reduced.shape))
    return jnp.concatenate([x, layer("proj", jnp.concatenate(contexts, -1))], -1)


def simplified_psa(params: Any, x: Array) -> Array:
    reduced = conv(params["conv_reduce"], x)
    collected = jax.nn.softmax(wide(conv(params["collect"], reduced)), (1, 2)).astype(x.dtype)
    distributed = jax.nn.softmax(wide(conv(params["distribute"], reduced)), -1).astype(x.dtype)
    descriptors = jnp.einsum("nhwi,nhwj->nij", reduced, collected)
    return reduced + jnp.einsum("nij,nhwj->nhwi", descriptors, distributed)


PLAIN = {
    "bat": bat,
    "criss_cross": criss_cross,
    "danet_position": self_attention,
    "double_attention": double_attention,
    "generalized": generalized,
    "multi_head": multi_head,
    "non_local": non_local,
    "psanet": psanet,
    "self_attention": self_attention,
    "simplified_psa": simplified_psa,
    "window": window,
}
