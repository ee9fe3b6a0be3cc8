"""The gates and maps of a network's attention, each under a name that stays."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from flaxattn.attention import ATTENTION
from flaxattn.attention.graft import Graft
from flaxattn.attention.mechanism import declared, layer_of
from flaxattn.errors import InputError
from flaxattn.layers.initialise import TreePath


def attention_maps(
    model: nn.Module, variables: Mapping[str, Any], images: Any, **fields: Any
) -> dict[str, Array]:
    """What each attention layer of a network multiplies or mixes with, where it sees `images`.

        maps = attention_maps(model, variables, images)
        maps["layer3_0/se"]            # (N, C), a gate for each channel
        maps["layer3_0/cbam/spatial"]  # (N, H, W, 1), a gate for each position

    A name is made of the block, of what ATTENTION calls the layer's class (the first of its names),
    and of the part of the layer, if it has several. In a slot whose name is not a mechanism's, as
    "context" or "conv2", the slot is named too: layer4_1/context/non_local. A layer that blocks
    share is named by each of them. What one place returns several times is numbered from 0, as
    layer4_1/context/criss_cross/1. What a map holds, and of which shape, is in its layer's
    docstring.

    It is a pure function that can be compiled:

        jax.jit(functools.partial(attention_maps, model))(variables, images)

    Layers that can work in chunks, to save memory, make their maps whole here.

    Args:
        model: any Linen module with layers that sow `attention` into `intermediates`.
        variables: its variables.
        images: what it is called with.
        fields: further arguments of its call, by keyword.

    Raises InputError for a network in which no layer does.
    """
    found = recorded(model, variables, images, **fields)
    if not found:
        raise InputError(
            f"no layer of this {type(model).__name__} sows its attention: use a network that has "
            f"some, as of create_model(..., attention='se'), or class_activation_maps, which needs "
            f"none."
        )
    return found


def recorded(
    model: nn.Module, variables: Mapping[str, Any], images: Any, **fields: Any
) -> dict[str, Array]:
    """`attention_maps`, and nothing for a network without attention."""
    names: dict[tuple[TreePath, int], str] = {}
    frames: list[nn.Module] = []

    def watch(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        if module.scope is None:  # a check of its own fields runs before it has a place
            return call(*arguments, **keywords)
        frames.append(module)
        result = call(*arguments, **keywords)
        sown = module.scope.get_variable("intermediates", "attention", ())
        for index in range(len(sown)):
            # The innermost call is the first to see it.
            if (module.path, index) not in names:
                names[module.path, index] = _name(frames)
        frames.pop()
        return result

    own = {name: value for name, value in variables.items() if name != "intermediates"}
    with nn.intercept_methods(watch):
        _, state = model.apply(own, images, **fields, mutable=["intermediates"])

    times, numbers = Counter(names.values()), Counter[str]()
    found: dict[str, Any] = {}
    for (path, index), name in names.items():
        sown = state["intermediates"]
        for part in (*path, "attention"):
            sown = sown[part]
        single = times[name] == 1
        found[name if single else f"{name}/{numbers[name]}"] = sown[index]
        numbers[name] += 1
    return flatten_dict(found, sep="/")


def _name(frames: Sequence[nn.Module]) -> str:
    """What is sown in the last of these calls, each of which is made in the one before."""
    sowing = frames[-1].path
    outer = next((i for i, m in enumerate(frames) if declared(m, "role") is not None), None)
    if outer is None:
        return "/".join(sowing) or type(frames[-1]).__name__
    layer = frames[outer]
    place, block = layer.path, frames[outer - 1].path if outer else ()
    # A slot of a mechanism's name, as "se", may have another; a layer that blocks share stands
    # beside them.
    if place and place[:-1] == block and place[-1] not in ATTENTION:
        block = place
    return "/".join((*block, _registered(layer), *sowing[len(place) :]))


def _registered(layer: nn.Module) -> str:
    """What ATTENTION calls the layer's class; the class's own name if it does not know it."""
    made = type(layer.layer if isinstance(layer, Graft) else layer)
    names = [name for name, known in ATTENTION.items() if known is made]
    names += [name for name, known in ATTENTION.items() if layer_of(known) is made]
    return names[0] if names else made.__name__
