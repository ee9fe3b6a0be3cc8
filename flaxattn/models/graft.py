"""Attention into a network that is trained already, without moving its answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn.errors import InputError
from flaxattn.models.placement import Placement

SLOTS = ("attention", "context")


def graft(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    attention: Any = None,
    context: Any = None,
    input_shape: Sequence[int] = (1, 224, 224, 3),
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
    """`model` with layers in its slots that start as the identity, and all variables.

        model, variables = graft(model, variables, attention=dict(name="se", stages=(3, 4)))

    At step 0 the logits are those of `variables`, in eval and in train mode, and gradients reach
    the new layers (`attention.graft.Graft`). The model is that of create_model with `graft=True` in
    the slot's placement, which is how a config states it.

    Args:
        model: of MODELS, with the slot empty.
        variables: its own; they are not copied.
        attention, context: what goes into the slots, in any form `placement.place` takes.
        input_shape: (N, H, W, C) of images, for layers whose parameters depend on their map's size.
        seed: of the new parameters.

    Raises InputError for a slot that is taken, or that this model does not have, for variables that
    are not the model's, for no layer at all, and what `place` refuses.
    """
    wanted = {"attention": attention, "context": context}
    fields = {slot: _grafted(slot, value) for slot, value in wanted.items() if value is not None}
    if not fields:
        raise InputError("nothing to graft: pass attention=... or context=... .")
    for slot in fields:
        if slot not in {field.name for field in dataclasses.fields(model)}:
            raise InputError(f"{type(model).__name__} has no {slot} slot: use the other one.")
        if getattr(model, slot) is not None:
            raise InputError(
                f"the {slot} slot of this {type(model).__name__} is taken: use the other one, or a "
                f"model without {slot}."
            )
    grown = model.clone(**fields)
    images = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    key = jax.random.key(seed)
    own = flatten_dict(dict(variables))
    expected = flatten_dict(jax.eval_shape(grown.init, key, images))
    _require_own(model, own, expected, images)

    @jax.jit
    def new(key):
        drawn = grown.init(key, jnp.zeros(images.shape, images.dtype))
        return {path: leaf for path, leaf in flatten_dict(drawn).items() if path not in own}

    return grown, unflatten_dict(own | new(key))


def _grafted(slot: str, value: Any) -> Any:
    """The same value for a slot, as a graft."""
    if isinstance(value, str):
        return {"name": value, "graft": True}
    if hasattr(value, "keys"):
        return {**value, "graft": True}
    if isinstance(value, Placement):
        return dataclasses.replace(value, graft=True)
    return Placement(value, blocks="last" if slot == "context" else "all", graft=True)


def _require_own(
    model: nn.Module, own: Mapping[tuple, Any], expected: Mapping[tuple, Any], images: Any
) -> None:
    before = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))
    missing = [path for path in before if path not in own]
    wrong = [path for path in own if path not in before or own[path].shape != before[path].shape]
    moved = [path for path in before if path not in expected]
    for what, paths in (("missing", missing), ("not the model's", wrong), ("in the way", moved)):
        if paths:
            names = ", ".join("/".join(path) for path in paths[:5])
            raise InputError(
                f"{len(paths)} of the variables are {what}: {names}{', ...' * (len(paths) > 5)}."
            )
