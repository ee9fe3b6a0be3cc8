"""What a named layer of any Linen module returns, seen and changed from outside."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax import Array

from flaxattn.errors import InputError, unknown
from flaxattn.layers.initialise import TreePath
from flaxattn.models.backbone import Backbone

_BACKBONE_CALLS = ("__call__", "features", "maps")
_KEPT = "layer_output"  # a collection of our own: others change what some layers do


class Layer(NamedTuple):
    """A layer that is called once, by its path, and its output (N, H, W, C) without numbers."""

    path: TreePath
    output: Any


@contextmanager
def _each_call(then: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """`then` sees what each layer's call returns, and may return something else instead.

    Of layers that share a path, as one that wraps another, only the outermost counts.
    """
    inside: list[TreePath] = []

    def watch(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        is_call = context.method_name in ("__call__", "step") and module.scope is not None
        if not is_call or module.path in inside:
            return call(*arguments, **keywords)
        inside.append(module.path)
        output = call(*arguments, **keywords)
        inside.pop()
        if context.method_name == "step":
            x, carry = output
            return then(module, x), carry
        return then(module, output)

    with nn.intercept_methods(watch):
        yield


def find_layer(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Any,
    layer: str | None,
    fields: Mapping[str, Any],
) -> Layer:
    """The layer at a path such as "layer4_1", or the last block of the first backbone for None.

    Nothing is computed. Raises InputError for a path that no layer has, for one that is called
    several times or returns no maps, and for None where there is no backbone of this package.
    """
    outputs: dict[TreePath, list[Any]] = {}
    last: list[TreePath] = []

    def note(module: nn.Module, output: Any) -> Any:
        outputs.setdefault(module.path, []).append(output)
        return output

    def watch(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, Backbone) and context.method_name in _BACKBONE_CALLS:
            last.append((*module.path, module.last_stage[-1]))
        return call(*arguments, **keywords)

    with _each_call(note), nn.intercept_methods(watch):
        jax.eval_shape(lambda v, x: model.apply(v, x, **fields), variables, images)

    usable = {"/".join(path): path for path, made in outputs.items() if _is_one_map(made)}
    if layer is None and not last:
        shown = ", ".join(list(usable)[-5:])
        raise InputError(
            f"layer=None is for the backbones of flaxattn, and {type(model).__name__} has none: "
            f"name a layer with maps, such as {shown or 'a convolution'}."
        )
    path = last[0] if layer is None else tuple(layer.split("/"))
    if path not in outputs:
        raise unknown("layer", "/".join(path), usable)
    made = outputs[path]
    if not _is_one_map(made):
        times = f"is called {len(made)} times" if len(made) > 1 else f"returns {_shown(made[0])}"
        raise InputError(
            f"layer={'/'.join(path)!r} {times}: name one that is called once and returns maps "
            f"(N, H, W, C), such as {', '.join(list(usable)[-5:])}."
        )
    return Layer(path, made[0])


def _is_one_map(made: list[Any]) -> bool:
    return len(made) == 1 and len(getattr(made[0], "shape", ())) == 4


def _shown(output: Any) -> str:
    return f"{output.shape}" if hasattr(output, "shape") else f"a {type(output).__name__}"


def apply_with(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Any,
    layer: Layer,
    fields: Mapping[str, Any],
    *,
    added: Array | None = None,
) -> tuple[Any, Array]:
    """What the model returns, and the layer's output, to which `added` is added first."""

    def change(module: nn.Module, output: Any) -> Any:
        if module.path != layer.path:
            return output
        output = output if added is None else output + added
        module.sow(_KEPT, "output", output)
        return output

    with _each_call(change):
        outputs, state = model.apply(variables, images, **fields, mutable=[_KEPT])
    kept = state[_KEPT]
    for part in (*layer.path, "output"):
        kept = kept[part]
    return outputs, kept[0]
