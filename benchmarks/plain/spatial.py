"""Gates of positions, and of strips of them, written plainly."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.plain.ops import conv, mean, mlp, scaled, wide


def cbam(params: Any, x: Array) -> Array:
    maximum = wide(jnp.max(x, (1, 2)))
    x = scaled(x, jax.nn.sigmoid(mlp(params["channel"], mean(x)) + mlp(params["channel"], maximum)))
    return spatial(params["spatial"], x)


def spatial(params: Any, x: Array) -> Array:
    pools = [jnp.mean(wide(x), -1, keepdims=True), wide(jnp.max(x, -1, keepdims=True))]
    return scaled(x, jax.nn.sigmoid(conv(params["conv"], jnp.concatenate(pools, -1))))


PLAIN = {
    "cbam": cbam,
    "spatial": spatial,
}
