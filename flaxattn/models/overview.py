"""A network's layers and variables, seen while it is evaluated without numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from flaxattn.attention.mechanism import declared
from flaxattn.layers.initialise import TreePath

# The roles of layers that can be put into a trained network.
_ADDED = ("recalibrate", "context")


class Overview(NamedTuple):
    """What a network is made of.

    Fields:
        variables: abstract ones, nested, its collections first.
        roles: what each layer that is called declares as its role, by its path, in their order.
        heads: the paths of the last layers, as `head_name` has them: one name or several, "fc" if
            the network does not say. They need not be there.
        last_stage: the paths of the modules of the last stage, as `Backbone.last_stage` has them;
            none if the network does not say.
    """

    variables: dict[str, Any]
    roles: dict[TreePath, str | None]
    heads: list[TreePath]
    last_stage: list[TreePath]

    @property
    def attention(self) -> list[TreePath]:
        """The outermost of the layers that recalibrate or bring in context."""
        outermost: list[TreePath] = []
        for path in sorted(path for path, role in self.roles.items() if path and role in _ADDED):
            if not any(path[: len(outer)] == outer for outer in outermost):
                outermost.append(path)
        return outermost


def overview(module: nn.Module, inputs: Sequence[Any]) -> Overview:
    """The overview of a module that is called with `inputs`, abstract arrays."""
    roles: dict[TreePath, str | None] = {}

    def note(method, args, kwargs, context) -> Any:
        if context.module.scope is not None:  # a check of its own fields runs before it has a place
            roles.setdefault(context.module.path, declared(context.module, "role"))
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables = jax.eval_shape(module.init, key, *inputs)
    names = getattr(module, "head_name", "fc")
    heads = [tuple(name.split("/")) for name in ((names,) if isinstance(names, str) else names)]
    last_stage: list[TreePath] = [(name,) for name in getattr(module, "last_stage", ())]
    return Overview(variables, roles, heads, last_stage)
