"""Everything that training changes, as one pytree."""

from collections.abc import Collection, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from flaxattn.layers.initialise import TreePath


def part(params: Mapping[str, Any], paths: Collection[TreePath] | None) -> Any:
    """The parameters at `paths` alone, nested as they are; all for None."""
    if paths is None:
        return params
    return unflatten_dict({p: leaf for p, leaf in flatten_dict(dict(params)).items() if p in paths})


def merged(params: Mapping[str, Any], learnt: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with those of `learnt` in their places."""
    return unflatten_dict(flatten_dict(dict(params)) | flatten_dict(dict(learnt)))


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
        cls,
        variables: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
        *,
        ema: bool,
        trainable: Collection[TreePath] | None = None,
    ) -> "TrainState":
        """The state at step 0 of a model's variables.

        trainable: the parameters that the optimiser knows; None for all.
        """
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        # Copies: a donated state must not hold one buffer twice.
        average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(part(params, trainable)),
            ema=average if ema else {},
        )
