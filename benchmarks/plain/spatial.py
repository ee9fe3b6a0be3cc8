"""Gates of positions, and of strips of them, written plainly."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.plain.ops import batch_norm, conv, dense, mean, mlp, row, scaled, wide


def cbam(params: Any, x: Array) -> Array:
    maximum = wide(jnp.max(x, (1, 2)))
    x = scaled(x, jax.nn.sigmoid(mlp(params["channel"], mean(x)) + mlp(params["channel"], maximum)))
    return spatial(params["spatial"], x)


def lcbam(params: Any, x: Array) -> Array:
    pooled = (mean(x) + wide(jnp.max(x, (1, 2)))) / 2
    x = scaled(x, jax.nn.sigmoid(mlp(params["channel"], pooled)))
    return spatial_light(params["spatial"], x)


def spatial(params: Any, x: Array) -> Array:
    pools = jnp.concatenate([mean_along(x, -1), max_along(x, -1)], -1)
    return scaled(x, jax.nn.sigmoid(conv(params["conv"], pools)))


def spatial_light(params: Any, x: Array) -> Array:
    pooled = (mean_along(x, -1) + max_along(x, -1)) / 2
    return scaled(x, jax.nn.sigmoid(batch_norm(params["bn"], conv(params["conv"], pooled))))


def spatial_separable(params: Any, x: Array) -> Array:
    pools = jnp.concatenate([mean_along(x, -1), max_along(x, -1)], -1)
    around = conv(params["conv"], pools, groups=2)
    return scaled(x, jax.nn.sigmoid(conv(params["pointwise"], around)))


def triplet(params: Any, x: Array) -> Array:
    total = 0
    for name, axes in (("cw", (0, 3, 2, 1)), ("hc", (0, 1, 3, 2)), ("hw", (0, 1, 2, 3))):
        turned = x.transpose(axes)
        pools = jnp.concatenate([max_along(turned, -1), mean_along(turned, -1)], -1)
        logits = batch_norm(params[name]["bn"], conv(params[name]["conv"], pools))
        total += (wide(turned) * jax.nn.sigmoid(logits)).transpose(axes)
    return (total / 3).astype(x.dtype)


def mean_along(x: Array, axis: int) -> Array:
    return jnp.mean(wide(x), axis, keepdims=True)


def max_along(x: Array, axis: int) -> Array:
    return wide(jnp.max(x, axis, keepdims=True))


def sca(params: Any, x: Array) -> Array:
    channel = jax.nn.sigmoid(mlp(params, mean(x), ("channel_att_1", "channel_att_3")))
    position = jax.nn.sigmoid(wide(conv(params["spatial_att_0"], x)))
    return scaled(x, channel[:, None, None] * position)


def sca_lite(params: Any, x: Array) -> Array:
    hidden = jax.nn.hard_swish(dense(params["channel_att_1"], mean(x)))
    channel = jax.nn.hard_sigmoid(dense(params["channel_att_3"], hidden))
    position = jax.nn.hard_sigmoid(wide(conv(params["spatial_att_0"], x)))
    return scaled(x, channel[:, None, None] * position)


def sca_residual(params: Any, x: Array) -> Array:
    return x + conv(params["conv"], sca(params["attn"], x))


def sca_cnn(params: Any, x: Array) -> Array:
    n, h, w, c = x.shape

    def weights(params: Any, items: Array) -> Array:
        kernel = params["context"]["kernel"][0].astype(items.dtype)
        hidden = wide(items @ kernel) + row(params["context"]["bias"], 3)
        scores = hidden_scores(params, jnp.tanh(hidden))
        return jax.nn.softmax(scores, -1)

    x = scaled(x, c * weights(params["channel"], mean(x)[:, :, None]))
    alpha = weights(params["spatial"], x.reshape(n, h * w, c))
    return scaled(x, h * w * alpha.reshape(n, h, w, 1))


def hidden_scores(params: Any, hidden: Array) -> Array:
    return (hidden @ params["kernel"])[..., 0] + row(params["bias"], 2)


def strip(params: Any, x: Array) -> Array:
    rows, columns = mean_along(x, 2), mean_along(x, 1)
    rows = conv(params["conv_h"], rows, groups=x.shape[-1])
    columns = conv(params["conv_w"], columns, groups=x.shape[-1])
    return scaled(x, jax.nn.sigmoid(rows + columns))


def strip_pooling(params: Any, x: Array) -> Array:
    rows = batch_norm(params["bn1"], conv(params["conv1"], mean_along(x, 2)))
    columns = batch_norm(params["bn2"], conv(params["conv2"], mean_along(x, 1)))
    both = jax.nn.relu(rows + columns).astype(x.dtype)
    return scaled(x, jax.nn.sigmoid(wide(conv(params["conv3"], both))))


def simple_coordinate(params: Any, x: Array) -> Array:
    rows, columns = (
        dense(params[name], jax.nn.silu(dense(params["fc1"], mean_along(x, axis))))
        for name, axis in (("fc_h", 2), ("fc_w", 1))
    )
    return scaled(x, jax.nn.sigmoid(rows + columns))


def coordinate(params: Any, x: Array) -> Array:
    means = jnp.concatenate([jnp.mean(wide(x), 2), jnp.mean(wide(x), 1)], 1)
    f = jax.nn.hard_swish(batch_norm(params["bn1"], dense(params["conv1"], means)))
    rows, columns = f[:, : x.shape[1]], f[:, x.shape[1] :]
    height = jax.nn.sigmoid(dense(params["conv_h"], rows))[:, :, None]
    width = jax.nn.sigmoid(dense(params["conv_w"], columns))[:, None]
    return scaled(x, height * width)


def ela(params: Any, x: Array) -> Array:
    c = x.shape[-1]

    def gate(strip: Array) -> Array:
        kernel = params["conv"]["kernel"]
        f = lax.conv_general_dilated(
            strip,
            kernel,
            (1,),
            [(len(kernel) // 2,) * 2],
            dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=c,
        )
        groups = f.reshape(*f.shape[:2], 16, c // 16)
        centred = groups - jnp.mean(groups, (1, 3), keepdims=True)
        var = jnp.mean(jnp.square(centred), (1, 3), keepdims=True)
        f = (centred * lax.rsqrt(var + 1e-5)).reshape(f.shape)
        return jax.nn.sigmoid(f * row(params["gn"]["scale"], 3) + row(params["gn"]["bias"], 3))

    height, width = gate(jnp.mean(wide(x), 2)), gate(jnp.mean(wide(x), 1))
    return scaled(x, height[:, :, None] * width[:, None])


def polarized(params: Any, x: Array) -> Array:
    energy = wide(conv(params["conv_q_right"], x))
    weights = jax.nn.softmax(energy, (1, 2)).astype(x.dtype)
    value = conv(params["conv_v_right"], x)
    z = jnp.einsum("nhwo,nhwc->nc", weights, value, preferred_element_type=jnp.float32)
    channel = jax.nn.sigmoid(layer_norm(params["ln"], dense(params["conv_up"], z)))
    query = jax.nn.softmax(mean(conv(params["conv_q_left"], x))).astype(x.dtype)
    value = conv(params["conv_v_left"], x)
    energy = jnp.einsum("nc,nhwc->nhw", query, value, preferred_element_type=jnp.float32)
    return scaled(x, channel[:, None, None] + jax.nn.sigmoid(energy)[..., None])


def layer_norm(params: Any, z: Array) -> Array:
    centred = z - jnp.mean(z, -1, keepdims=True)
    var = jnp.mean(jnp.square(centred), -1, keepdims=True)
    return centred * lax.rsqrt(var + 1e-5) * row(params["scale"], 2) + row(params["bias"], 2)


def global_context(params: Any, x: Array) -> Array:
    weights = jax.nn.softmax(wide(conv(params["conv_mask"], x)), (1, 2))
    z = jnp.sum(weights * wide(x), (1, 2))
    hidden = layer_norm(params["channel_add_conv_1"], dense(params["channel_add_conv_0"], z))
    t = dense(params["channel_add_conv_3"], jax.nn.relu(hidden))
    return (wide(x) + t[:, None, None]).astype(x.dtype)


def lka(params: Any, x: Array) -> Array:
    c = x.shape[-1]
    u = conv(params["conv0"], x, groups=c)
    u = conv(params["conv_spatial"], u, dilation=3, groups=c)
    return x * conv(params["conv1"], u)


def lska(params: Any, x: Array) -> Array:
    c = x.shape[-1]
    u = conv(params["conv0v"], conv(params["conv0h"], x, groups=c), groups=c)
    u = conv(params["conv_spatial_h"], u, dilation=3, groups=c)
    u = conv(params["conv_spatial_v"], u, dilation=3, groups=c)
    return x * conv(params["conv1"], u)


def lsk(params: Any, x: Array) -> Array:
    c = x.shape[-1]
    near = conv(params["conv0"], x, groups=c)
    far = conv(params["conv_spatial"], near, dilation=3, groups=c)
    near, far = conv(params["conv1"], near), conv(params["conv2"], far)
    both = jnp.concatenate([near, far], -1)
    pools = jnp.concatenate([mean_along(both, -1), max_along(both, -1)], -1)
    branches = jax.nn.sigmoid(conv(params["conv_squeeze"], pools))
    mixed = wide(near) * branches[..., :1] + wide(far) * branches[..., 1:]
    return x * conv(params["conv"], mixed.astype(x.dtype))


PLAIN = {
    "cbam": cbam,
    "coordinate": coordinate,
    "ela": ela,
    "global_context": global_context,
    "lcbam": lcbam,
    "lka": lka,
    "lsk": lsk,
    "lska": lska,
    "polarized": polarized,
    "sca": sca,
    "sca_cnn": sca_cnn,
    "sca_lite": sca_lite,
    "sca_residual": sca_residual,
    "simple_coordinate": simple_coordinate,
    "spatial": spatial,
    "spatial_separable": spatial_separable,
    "strip": strip,
    "strip_pooling": strip_pooling,
    "triplet": triplet,
}
