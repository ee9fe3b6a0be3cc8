"""Everything that training changes, as one pytree."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds; the model and the optimiser live in closures.

    Fields:
        step: optimiser steps taken, int32.
        params, batch_stats: the model's variables; float32.
        opt_state: optax's state.
        ema: exponential moving averages of {"params", "batch_stats"}, or {} if they are off.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any

    def variables(self) -> dict[str, Any]:
        """What evaluation applies: the averages where they are kept."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def initialiser(
    model: nn.Module, optimizer: optax.GradientTransformation, inputs: tuple, *, ema: bool
) -> Callable[[Array], TrainState]:
    """A pure function from a key to the state at step 0, for `jit` and `eval_shape`.

    inputs: the model's positional arguments, abstract (jax.ShapeDtypeStruct).
    """

    def init(key: Array) -> TrainState:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
        variables = model.init(key, *zeros)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        # Copies: a donated state must not hold one buffer twice.
        average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema=average if ema else {},
        )

    return init
