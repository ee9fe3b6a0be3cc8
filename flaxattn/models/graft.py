"""Attention into a network that is trained already, without changing its logits."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from flaxattn.attention.mechanism import AsConvolution, declared
from flaxattn.errors import InputError
from flaxattn.layers.fields import checked
from flaxattn.layers.initialise import initialise
from flaxattn.layers.precision import at_least_float32
from flaxattn.models.placement import Placement, Slot

# A collection, the modules' names and the array's own, as flatten_dict has them.
Path = tuple[str, ...]


@checked
def graft(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    attention: Slot = None,
    conv: Slot = None,
    context: Slot = None,
    input_shape: Sequence[int] = (1, 224, 224, 3),
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any]]:
    """`model` with layers in its slots that change nothing at first, and all variables.

        model, variables = graft(model, variables, attention=dict(name="se", stages=(3, 4)))

    At step 0 the logits are those of `variables`, in eval and in train mode, and gradients reach
    the new layers. Attention and context start as the identity (`attention.graft.Graft`); a config
    says so with `graft=True` in the slot's placement. What replaces a convolution starts with its
    kernel and norm in each of its branches (`attention.mechanism.AsConvolution`). For this,
    selective kernels must have no dilation, and the network's groups:

        graft(resnet50, variables, conv=dict(name="sk", groups=1, dilated=False))

    Args:
        model: of MODELS, with the slot empty.
        variables: its own; they are not copied.
        attention, conv, context: what goes into the slots, in any form `place.place` takes.
        input_shape: (N, H, W, C) of images, for layers whose parameters depend on their map's size.
        seed: of the new parameters.

    Raises InputError for a slot that is taken, or that this model does not have, for variables that
    are not the model's, for no layer at all, for a layer that cannot start as the convolution in
    its place, and for what `place` refuses.
    """
    grown = grafted(model, attention=attention, conv=conv, context=context)
    images = jax.ShapeDtypeStruct(tuple(input_shape), at_least_float32(model.param_dtype))
    key = jax.random.key(seed)
    own = flatten_dict(dict(variables))
    expected = flatten_dict(jax.eval_shape(grown.init, key, images))
    _require_own(model, own, images)
    kept = {path: leaf for path, leaf in own.items() if path in expected}
    left = {path: leaf for path, leaf in own.items() if path not in expected}
    if conv is not None:
        kept |= _inherited(_as_convolution(model, grown.conv), left, expected)
    elif left:
        raise InputError(f"{len(left)} of the variables are in the way: {_listed(left)}.")
    new = expected.keys() - kept.keys()
    drawn = flatten_dict(initialise(grown, key, images.shape, paths=new))
    return grown, unflatten_dict(kept | {path: drawn[path] for path in new})


def grafted(
    model: nn.Module, *, attention: Slot = None, conv: Slot = None, context: Slot = None
) -> nn.Module:
    """The model that `graft` returns, which follows from the slots alone. Raises InputError too."""
    slots = {"attention": attention, "conv": conv, "context": context}
    given: dict[str, Any] = {slot: v for slot, v in slots.items() if v is not None}
    if not given:
        raise InputError("nothing to graft: pass attention=..., conv=... or context=... .")
    for slot in given:
        if slot not in {field.name for field in dataclasses.fields(model)}:
            raise InputError(f"{type(model).__name__} has no {slot} slot: use another one.")
        if getattr(model, slot) not in (None, False):
            raise InputError(
                f"the {slot} slot of this {type(model).__name__} is taken: use another one, or a "
                f"model without {slot}."
            )
    placed = model.clone(**given)  # which knows where layers usually stand in this network
    return placed.clone(
        **{slot: dataclasses.replace(getattr(placed, slot), graft=slot != "conv") for slot in given}
    )


def _as_convolution(model: nn.Module, placement: Placement) -> AsConvolution:
    layer = placement.example()
    form = declared(layer, "as_convolution")
    if form is None:
        raise InputError(
            f"{type(layer).__name__} has no form that equals a convolution: make it part of a "
            f"network that is trained from the start."
        )
    if form.norms and layer.norm(parent=None) != model.norm(parent=None):
        raise InputError(
            f"{type(layer).__name__} ends in another normalisation than the network has: give it "
            f"the same, conv=dict(..., norm=model.norm)."
        )
    return form


def _inherited(
    form: AsConvolution, left: Mapping[Path, Array], expected: Mapping[Path, Any]
) -> dict[Path, Array]:
    """The variables that make layers equal the convolutions, and norms, of `left`."""
    found: dict[Path, Array] = {}
    for collection, *block, conv, name in left:
        if name != "kernel":
            continue
        kernel, layer = left[collection, *block, conv, name], (*block, conv)
        for inner in form.kernels:
            path = ("params", *layer, *inner.split("."))
            found[path] = _fitted(form.gain * kernel, expected[path].shape, "/".join(path[1:]))
        norm = _below(left, *block, conv.replace("conv", "bn"))
        for inner in form.norms:
            home = (*layer, *inner.split("."))
            found |= {(first, *home, last): leaf for (first, last), leaf in norm.items()}
        for inner in form.zeros:
            start = ("params", *layer, *inner.split("."))
            for path, leaf in expected.items():
                if path[: len(start)] == start:
                    found[path] = jnp.zeros(leaf.shape, leaf.dtype)
    return found


def _below(variables: Mapping[Path, Any], *module: str) -> dict[Path, Any]:
    """A module's own variables, by collection and name."""
    return {(p[0], p[-1]): leaf for p, leaf in variables.items() if p[1:-1] == module}


def _fitted(kernel: Array, shape: tuple[int, ...], name: str) -> Array:
    """`kernel` (k, k, C / groups, features) in the middle of a larger one, or of several."""
    *_, height, width, inner, features = shape
    margins = [(size - own) // 2 for size, own in zip((height, width), kernel.shape, strict=False)]
    if (inner, features) != kernel.shape[2:] or min(margins) < 0:
        raise InputError(
            f"{name} of shape {shape} cannot hold the kernel {kernel.shape} that it replaces: give "
            f"the layer that convolution's groups and all of its input, and no smaller kernel."
        )
    padded = jnp.pad(kernel, [(margin, margin) for margin in margins] + [(0, 0), (0, 0)])
    return jnp.broadcast_to(padded, shape)


def _require_own(model: nn.Module, own: Mapping[Path, Any], images: Any) -> None:
    before = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))
    missing = [path for path in before if path not in own]
    wrong = [path for path in own if path not in before or own[path].shape != before[path].shape]
    for what, paths in (("missing", missing), ("not the model's", wrong)):
        if paths:
            raise InputError(f"{len(paths)} of the variables are {what}: {_listed(paths)}.")


def _listed(paths: Collection[Path]) -> str:
    names = ["/".join(path) for path in paths]
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)
