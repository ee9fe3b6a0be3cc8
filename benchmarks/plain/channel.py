"""Gates of channels, and of groups of them, written plainly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.plain.ops import batch_norm, conv, dense, mean, mlp, row, scaled, wide


def se(params: Any, x: Array) -> Array:
    return scaled(x, jax.nn.sigmoid(mlp(params, mean(x))))


def efficientnet_se(params: Any, x: Array) -> Array:
    hidden = jax.nn.silu(dense(params["fc1"], mean(x)))
    return scaled(x, jax.nn.sigmoid(dense(params["fc2"], hidden)))


def mobilenet_v3_se(params: Any, x: Array) -> Array:
    return scaled(x, jax.nn.hard_sigmoid(mlp(params, mean(x))))


def grouped_se(params: Any, x: Array) -> Array:
    z = mean(x)[:, None, None]
    hidden = jax.nn.relu(conv(params["fc1"], z, groups=4))
    return scaled(x, jax.nn.sigmoid(conv(params["fc2"], hidden, groups=4)))


def sca_channel(params: Any, x: Array) -> Array:
    return scaled(x, jax.nn.sigmoid(mlp(params, mean(x), ("channel_att_1", "channel_att_3"))))


def eca(params: Any, x: Array) -> Array:
    reach = len(params["conv"]["kernel"]) // 2
    padded = jnp.pad(mean(x), ((0, 0), (reach, reach)))
    return scaled(x, jax.nn.sigmoid(along_channels(params["conv"], padded)))


def ceca(params: Any, x: Array) -> Array:
    reach = len(params["conv"]["kernel"]) // 2
    padded = jnp.pad(mean(x), ((0, 0), (reach, reach)), mode="wrap")
    return scaled(x, jax.nn.sigmoid(along_channels(params["conv"], padded)))


def along_channels(params: Any, z: Array) -> Array:
    """(N, C + k - 1) -> (N, C)"""
    y = lax.conv_general_dilated(
        z[:, :, None],
        params["kernel"],
        (1,),
        "VALID",
        dimension_numbers=("NHC", "HIO", "NHC"),
        precision=lax.Precision.HIGHEST,
    )
    return y[:, :, 0]


def ese(params: Any, x: Array) -> Array:
    return scaled(x, jax.nn.hard_sigmoid(dense(params["fc"], mean(x))))


def gct(_: Any, x: Array) -> Array:
    z = mean(x)
    normal = (z - jnp.mean(z, -1, keepdims=True)) / (jnp.std(z, -1, keepdims=True) + 1e-5)
    return scaled(x, jnp.exp(-jnp.square(normal) / 8))


def lct(params: Any, x: Array) -> Array:
    z = mean(x).reshape(x.shape[0], 8, -1)
    centred = z - jnp.mean(z, -1, keepdims=True)
    normal = centred * lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-5)
    normal = normal.reshape(x.shape[0], -1)
    return scaled(x, jax.nn.sigmoid(row(params["w"], 2) * normal + row(params["b"], 2)))


def gather_excite(_: Any, x: Array) -> Array:
    return scaled(x, jax.nn.sigmoid(mean(x)))


def dia(params: Any, x: Array) -> Array:
    z = mean(x)
    gates = mlp(params, z, ("input_fc1", "input_fc2"))
    gates += mlp(params, jnp.zeros_like(z), ("hidden_fc1", "hidden_fc2"))
    i, _, g, o = jnp.split(gates, 4, -1)
    memory = jax.nn.sigmoid(i) * jnp.tanh(g)
    return scaled(x, jax.nn.sigmoid(o) * jax.nn.sigmoid(memory))


def gated_channel(params: Any, x: Array) -> Array:
    embedded = row(params["alpha"], 2) * jnp.sqrt(jnp.sum(jnp.square(wide(x)), (1, 2)) + 1e-5)
    normal = embedded / jnp.sqrt(jnp.mean(jnp.square(embedded), -1, keepdims=True) + 1e-5)
    return scaled(x, 1 + jnp.tanh(row(params["gamma"], 2) * normal + row(params["beta"], 2)))


def unbiased_variance(x: Array) -> Array:
    """(N, H, W, C) -> (N, 1, 1, C), float32."""
    return jnp.var(wide(x), (1, 2), ddof=1, keepdims=True)


def srm(params: Any, x: Array) -> Array:
    deviation = jnp.sqrt(unbiased_variance(x)[:, 0, 0] + 1e-5)
    z = row(params["cfc"][:, 0], 2) * mean(x) + row(params["cfc"][:, 1], 2) * deviation
    # The variance of the few samples is small beside the square of their mean.
    z -= jnp.mean(z, 0, keepdims=True)
    return scaled(x, jax.nn.sigmoid(batch_norm(params["bn"], z)))


def nam(params: Any, x: Array) -> Array:
    scale = lax.stop_gradient(jnp.abs(params["bn2"]["scale"]))
    weights = row(scale / jnp.sum(scale), 4)
    return scaled(x, jax.nn.sigmoid(weights * batch_norm(params["bn2"], wide(x))))


def simam(_: Any, x: Array) -> Array:
    squares = jnp.square(wide(x) - mean(x)[:, None, None])
    return scaled(x, jax.nn.sigmoid(squares / (4 * (unbiased_variance(x) + 1e-4)) + 0.5))


# The authors' sixteen best, in sevenths of the map along each of its axes.
FCA_ROWS = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
FCA_COLUMNS = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)


def fca(params: Any, x: Array) -> Array:
    height, width, c = x.shape[1:]

    def cosines(size: int, frequencies: tuple[int, ...]) -> np.ndarray:
        u = np.array(frequencies) * (size // 7)
        waves = np.cos(np.pi * u * (np.arange(size)[:, None] + 0.5) / size)
        return waves * np.where(u == 0, 1, np.sqrt(2)) / np.sqrt(size)

    basis = cosines(height, FCA_ROWS)[:, None] * cosines(width, FCA_COLUMNS)[None]
    basis = np.repeat(basis.astype(np.float32), c // 16, -1)
    z = jnp.sum(wide(x) * basis[None], (1, 2))
    return scaled(x, jax.nn.sigmoid(mlp(params, z)))


def gsop(params: Any, x: Array) -> Array:
    u = jax.nn.relu(batch_norm(params["bn_for_DR"], conv(params["conv_for_DR"], jax.nn.relu(x))))
    u = wide(u).reshape(x.shape[0], -1, u.shape[-1])
    u = u - jnp.mean(u, 1, keepdims=True)
    covariance = jnp.einsum("nmi,nmj->nji", u, u, precision=lax.Precision.HIGHEST) / u.shape[1]
    rows = batch_norm(params["row_bn"], covariance)
    kernel = params["row_conv_group"]["kernel"].reshape(u.shape[-1], u.shape[-1], 4)
    v = jnp.einsum("nji,jio->nio", rows, kernel, precision=lax.Precision.HIGHEST)
    v = v.reshape(x.shape[0], -1) + row(params["row_conv_group"]["bias"], 2)
    return scaled(x, jax.nn.sigmoid(dense(params["fc_adapt_channels"], v)))


def channel(params: Any, x: Array) -> Array:
    maximum = wide(jnp.max(x, (1, 2)))
    return scaled(x, jax.nn.sigmoid(mlp(params, mean(x)) + mlp(params, maximum)))


def danet_channel(params: Any, x: Array) -> Array:
    energy = jnp.einsum("nhwi,nhwj->nij", x, x, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(energy).astype(x.dtype)
    context = jnp.einsum("nij,nhwj->nhwi", weights, x, preferred_element_type=jnp.float32)
    return x + (params["gamma"][0] * context).astype(x.dtype)


def sge(params: Any, x: Array) -> Array:
    grouped = wide(x).reshape(*x.shape[:3], 64, -1)
    likeness = jnp.sum(grouped * jnp.mean(grouped, (1, 2), keepdims=True), -1)
    centred = likeness - jnp.mean(likeness, (1, 2), keepdims=True)
    normal = centred / (jnp.std(likeness, (1, 2), ddof=1, keepdims=True) + 1e-5)
    gate = jax.nn.sigmoid(row(params["weight"], 4) * normal + row(params["bias"], 4))
    return (grouped * gate[..., None]).reshape(x.shape).astype(x.dtype)


def shuffle(params: Any, x: Array) -> Array:
    n, height, width, c = x.shape
    grouped = wide(x).reshape(n, height, width, 64, 2, -1)
    first, second = grouped[..., 0, :], grouped[..., 1, :]

    def affine(name: str, z: Array) -> Array:
        return row(params[f"{name}weight"], 5) * z + row(params[f"{name}bias"], 5)

    first *= jax.nn.sigmoid(affine("c", jnp.mean(first, (1, 2), keepdims=True)))
    centred = second - jnp.mean(second, (1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centred), (1, 2), keepdims=True)
    normal = centred * lax.rsqrt(var + 1e-5)
    normal = row(params["gn"]["scale"], 5) * normal + row(params["gn"]["bias"], 5)
    second *= jax.nn.sigmoid(affine("s", normal))
    y = jnp.concatenate([first, second], -1).reshape(n, height, width, 2, c // 2)
    return y.swapaxes(-1, -2).reshape(x.shape).astype(x.dtype)


def bam(params: Any, x: Array) -> Array:
    logits = mlp(params, mean(x), ("gate_c_fc_0", "gate_c_fc_final"))
    of_channels = batch_norm(params["gate_c_bn_final"], logits)
    z = jax.nn.relu(conv(params["gate_s_conv_reduce0"], x))
    z = jax.nn.relu(conv(params["gate_s_conv_di_0"], z, dilation=4))
    z = jax.nn.relu(conv(params["gate_s_conv_di_1"], z, dilation=4))
    of_positions = batch_norm(params["gate_s_bn_final"], wide(conv(params["gate_s_conv_final"], z)))
    return scaled(x, 1 + jax.nn.sigmoid(of_channels[:, None, None] + of_positions))


PLAIN = {
    "bam": bam,
    "ceca": ceca,
    "channel": channel,
    "danet_channel": danet_channel,
    "dia": dia,
    "eca": eca,
    "efficientnet_se": efficientnet_se,
    "ese": ese,
    "fca": fca,
    "gated_channel": gated_channel,
    "gather_excite": gather_excite,
    "gct": gct,
    "grouped_se": grouped_se,
    "gsop": gsop,
    "lct": lct,
    "mobilenet_v3_se": mobilenet_v3_se,
    "nam": nam,
    "sca_channel": sca_channel,
    "se": se,
    "sge": sge,
    "shuffle": shuffle,
    "simam": simam,
    "srm": srm,
}
