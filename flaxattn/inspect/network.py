"""Where a network has its attention, and what each layer costs there."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxattn.attention.graft import Graft
from flaxattn.attention.mechanism import declared
from flaxattn.inspect.cost import Cost, cost, macs
from flaxattn.inspect.table import aligned, mmacs
from flaxattn.layers.abstract_variables import abstract_variables


class Placed(NamedTuple):
    """An attention layer in a network.

    Fields:
        path: its name in the network, such as layer1_0/se.
        layer: its class's name.
        role: "recalibrate", "context" or "convolution".
        input_shape: (N, H, W, C) of the map it sees.
        cost: its parameters and multiply-adds there.
        bytes: of the map that it reads and of the one that it writes, the least that it can move.
    """

    path: str
    layer: str
    role: str
    input_shape: tuple[int, ...]
    cost: Cost
    bytes: int


def placed(model: nn.Module, input_shape: tuple[int, ...]) -> list[Placed]:
    """The attention layers of `model` in the order in which they are applied; no array is made.

    A layer inside another one is part of that one. A layer that several blocks share is listed for
    each of them, and its parameters are counted the first time.
    """
    calls: list[tuple[nn.Module, tuple[str, ...], Callable[..., Any], list[Any], Any]] = []
    inside: list[nn.Module] = []

    def watch(call: Callable[..., Any], arguments: Any, fields: Any, context: Any) -> Any:
        module = context.module
        is_call = (
            context.method_name in ("__call__", "step") and declared(module, "role") is not None
        )
        if inside or not is_call:
            return call(*arguments, **fields)
        inside.append(module)
        answer = call(*arguments, **fields)
        inside.pop()
        y = answer[0] if isinstance(answer, tuple) else answer
        alone = module.clone(parent=None, name=None)
        leaves, tree = jax.tree.flatten((arguments, fields))
        arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves if _is_array(a)]

        def again(variables: Any, *arrays: Any) -> Any:
            left = iter(arrays)
            own = [next(left) if _is_array(leaf) else leaf for leaf in leaves]
            arguments, fields = jax.tree.unflatten(tree, own)
            return alone.apply(variables, *arguments, method=context.method_name, **fields)

        calls.append((alone, module.path, again, arrays, y))
        return answer

    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    variables = abstract_variables(model, input_shape)
    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, x)

    found, seen = [], set()
    for module, path, again, arrays, y in calls:
        own = {name: _below(collection, path) for name, collection in variables.items()}
        parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(own.get("params", {})))
        alone = Cost(0 if path in seen else parameters, macs(again, own, *arrays))
        seen.add(path)
        x = arrays[0]
        layer = module.layer if isinstance(module, Graft) else module
        size = (math.prod(x.shape) + math.prod(y.shape)) * jnp.dtype(x.dtype).itemsize
        found.append(Placed("/".join(path), type(layer).__name__, layer.role, x.shape, alone, size))
    return found


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def _below(collection: Any, path: tuple[str, ...]) -> Any:
    """The part of a collection that belongs to the module at `path`."""
    for name in path:
        collection = collection.get(name, {})
    return collection


def describe_network(name: str, model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The map of a network's attention as a table: where, its maps, and what it costs."""
    layers = placed(model, input_shape)
    whole = cost(model, input_shape)
    lines = [("layer", "what", "role", "map", "channels", "parameters", "MMACs", "MB moved")]
    for layer in layers:
        _, *size, channels = layer.input_shape
        lines.append(
            (
                layer.path,
                layer.layer,
                layer.role,
                "x".join(map(str, size)),
                str(channels),
                f"{layer.cost.parameters:,}",
                mmacs(layer.cost.macs),
                f"{layer.bytes / 1e6:.2f}",
            )
        )
    parameters = sum(layer.cost.parameters for layer in layers)
    products = sum(layer.cost.macs for layer in layers)
    height, width = input_shape[1:3]
    summary = (
        f"{name} at {height}x{width}: {whole.parameters:,} parameters, {mmacs(whole.macs)} MMACs; "
        f"attention has {parameters:,} ({parameters / whole.parameters:.2%}) of the parameters and "
        f"{mmacs(products)} ({products / whole.macs:.2%}) of the MMACs."
    )
    return "\n".join([*(aligned(lines, right=(4, 5, 6, 7)) if layers else []), "", summary]).strip()
