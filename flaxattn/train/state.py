"""Everything that training changes, as one pytree."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
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

    @classmethod
    def starting(
        cls, variables: Mapping[str, Any], optimizer: optax.GradientTransformation, *, ema: bool
    ) -> "TrainState":
        """The state at step 0 of a model's variables."""
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        # Copies: a donated state must not hold one buffer twice.
        average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema=average if ema else {},
        )
