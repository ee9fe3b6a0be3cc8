"""What variables a module would have, without making them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def abstract_variables(module: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    """Shapes and dtypes of the module's variables for an input (N, H, W, C); makes no array."""
    x = jax.ShapeDtypeStruct(tuple(input_shape), getattr(module, "param_dtype", jnp.float32))
    return jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), x)
