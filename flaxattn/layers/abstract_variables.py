"""What variables a module would have, without making them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Shape = Sequence[int]  # (N, H, W, C)


def abstract_input(module: nn.Module, input_shape: Shape | Sequence[Shape]) -> Any:
    """An input without numbers, in the dtype of the module's parameters; a list for several."""
    shape: Any = tuple(input_shape)
    if shape and isinstance(shape[0], Sequence):
        return [abstract_input(module, one) for one in shape]
    return jax.ShapeDtypeStruct(shape, getattr(module, "param_dtype", jnp.float32))


def abstract_variables(module: nn.Module, input_shape: Shape | Sequence[Shape]) -> dict[str, Any]:
    """Shapes and dtypes of the module's variables; makes no array.

    `input_shape` is (N, H, W, C) of an input, or a list of them for a module that takes several.
    """
    x = abstract_input(module, input_shape)
    return jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), x)
