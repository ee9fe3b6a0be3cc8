"""Gates of channels, written plainly."""

from typing import Any

import jax
from jax import Array

from benchmarks.plain.ops import mean, mlp, scaled


def se(params: Any, x: Array) -> Array:
    return scaled(x, jax.nn.sigmoid(mlp(params, mean(x))))


PLAIN = {
    "se": se,
}
