"""What the plain writings share: a convolution, a batch norm, a dense layer, pools."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def conv(params: Any, x: Array, *, strides: int = 1, dilation: int = 1, groups: int = 1) -> Array:
    """A convolution of two axes that keeps the size, in x's dtype, with a bias if there is one."""
    kernel = params["kernel"].astype(x.dtype)
    padding = [(dilation * (k - 1) // 2,) * 2 for k in kernel.shape[:2]]
    y = lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + params["bias"].astype(y.dtype)[None, None, None] if "bias" in params else y


def dense(params: Any, z: Array) -> Array:
    """A 1x1 convolution's kernel as a matrix, on (..., C), in full float32."""
    kernel = params["kernel"]
    y = jnp.matmul(z, kernel.reshape(kernel.shape[-2:]), precision=lax.Precision.HIGHEST)
    return y + row(params["bias"], y.ndim) if "bias" in params else y


def batch_norm(params: Any, x: Array) -> Array:
    """Over all axes but the last, by the batch's own statistics, in x's dtype."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(wide(x), axes, keepdims=True)
    var = jnp.mean(jnp.square(wide(x)), axes, keepdims=True) - jnp.square(mean)
    factor = lax.rsqrt(var + 1e-5) * row(params["scale"], x.ndim)
    return ((wide(x) - mean) * factor + row(params["bias"], x.ndim)).astype(x.dtype)


def row(vector: Array, ndim: int) -> Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def mean(x: Array) -> Array:
    """(N, H, W, C) -> (N, C), float32."""
    return jnp.mean(wide(x), (1, 2))


def scaled(x: Array, gate: Array) -> Array:
    """x times a gate (N, C), or one that broadcasts."""
    gate = gate[:, None, None] if gate.ndim == 2 else gate
    return (wide(x) * gate).astype(x.dtype)


def mlp(params: Any, z: Array, names: tuple[str, str] = ("fc1", "fc2")) -> Array:
    first, second = names
    return dense(params[second], jax.nn.relu(dense(params[first], z)))
