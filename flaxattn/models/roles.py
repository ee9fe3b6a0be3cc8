"""What the layers of a network are to it."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flaxattn.attention.mechanism import declared

Path = tuple[str, ...]  # the names of the modules from the network to the layer

ADDED = ("recalibrate", "context")  # the roles of layers that can be put into a trained network


def called(module: nn.Module, inputs: Sequence[jax.ShapeDtypeStruct]) -> dict[Path, str | None]:
    """Every layer that `module(*inputs)` calls, in their order, and the role that it declares."""
    found: dict[Path, str | None] = {}

    def note(method, args, kwargs, context) -> Any:
        if context.module.scope is not None:  # a check of its own fields runs before it has a place
            found.setdefault(context.module.path, declared(context.module, "role"))
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), *inputs)
    return found


def attention_of(layers: dict[Path, str | None]) -> list[Path]:
    """The outermost of the layers that recalibrate or bring in context."""
    outermost: list[Path] = []
    for path in sorted(path for path, role in layers.items() if path and role in ADDED):
        if not any(path[: len(outer)] == outer for outer in outermost):
            outermost.append(path)
    return outermost


def head_of(module: nn.Module) -> Path:
    """The last layer, which it need not have: "fc" if the module does not say."""
    return tuple(getattr(module, "head_name", "fc").split("/"))
