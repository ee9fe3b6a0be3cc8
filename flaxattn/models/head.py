"""What stands between the last map of a backbone and its logits."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.layers.pooling import average_pool, max_pool, mean_of

# timm's names: (N, H, W, C) -> (N, C), and twice as many channels for the last.
GLOBAL_POOLS: dict[str, Callable[[Array], Array]] = {
    "avg": average_pool,
    "max": max_pool,
    "avgmax": lambda x: mean_of([average_pool(x), max_pool(x)]),
    "catavgmax": lambda x: jnp.concatenate([average_pool(x), max_pool(x)], axis=-1),
}


def _as_the_input(*arrays: Any, **_: Any) -> list[Any]:
    """A layer's input and parameters in the input's dtype, as its `promote_dtype`."""
    return [array.astype(arrays[0].dtype) for array in arrays]


# The last layer: it computes in its input's dtype, float32 or wider after pooling.
Classifier = functools.partial(nn.Dense, promote_dtype=_as_the_input)
