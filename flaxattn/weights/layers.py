"""The layers of a module that weights may be without, and the shape that it is evaluated for."""

import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.errors import InputError
from flaxattn.layers.abstract_variables import Shape, abstract_input
from flaxattn.models.overview import overview
from flaxattn.weights.convert import Fit, Targets, TreePath, key_of
from flaxattn.weights.sources import Checkpoint


class Attempt(NamedTuple):
    """Weights held against a module.

    Fields:
        module, input_shape: see `load`.
        layers: the module's.
        checkpoint, tensors: where they are from, and all of them by torch's keys.
        found: how far they fit.
    """

    module: nn.Module
    input_shape: Shape | Sequence[Shape]
    layers: "Layers"
    checkpoint: Checkpoint
    tensors: dict[str, np.ndarray]
    found: Fit


class Layers(NamedTuple):
    """What of a module can be new.

    Fields:
        targets: its flat abstract variables.
        heads: the paths of its last layers, as a rule of one.
        attention: the paths of its attention layers.
        first_kernel: which target is the kernel of the layer called first; () if none is.
    """

    targets: Targets
    heads: list[TreePath]
    attention: list[TreePath]
    first_kernel: TreePath


def layers_of(module: nn.Module, input_shape: Shape | Sequence[Shape]) -> Layers:
    """What of the module can be new. Raises InputError for a shape without the usual four axes."""
    try:
        found = overview(module, [abstract_input(module, input_shape)])
    except Exception as error:
        shape = first_shape(input_shape)
        if len(shape) == 4:
            raise
        raise InputError(
            f"{type(module).__name__} cannot have {axes_of(shape)} ({error})."
        ) from error
    targets = flatten_dict(found.variables)
    kernels = (("params", *path, "kernel") for path in found.roles)
    first = next((path for path in kernels if path in targets), ())
    return Layers(targets, found.heads, found.attention, first)


def axes_of(shape: tuple[int, ...]) -> str:
    """What is likely wrong with a shape that is not (N, H, W, C), which only some layers take."""
    return f"input_shape={shape} with {len(shape)} axes: images have four, (N, H, W, C)"


def first_shape(input_shape: Any) -> tuple[int, ...]:
    """The shape of the input, or of the first of several. InputError unless it is one."""
    given = input_shape if np.iterable(input_shape) else ()
    shapes = [tuple(shape) if np.iterable(shape) else () for shape in given]
    if not any(shapes):
        shapes = [tuple(given)]
    for shape in shapes:
        if not shape or not all(isinstance(n, Integral) and 0 < int(n) < 2**31 for n in shape):
            raise InputError(
                f"input_shape={reprlib.repr(input_shape)} must be (N, H, W, C), integers from 1 to "
                f"2**31 - 1, such as (1, 224, 224, 3); or a list of such for a module of several "
                f"inputs."
            )
    return shapes[0]


def within(path: TreePath, layer: TreePath) -> bool:
    """Whether the array at `path`, collection first, belongs to the submodule `layer`."""
    return path[1 : 1 + len(layer)] == layer


def of_one(path: TreePath, layers: Sequence[TreePath]) -> bool:
    """Whether the array at `path` belongs to one of the submodules `layers`."""
    return any(within(path, layer) for layer in layers)


def absent(found: Fit, layers: Layers) -> list[TreePath]:
    """The attention layers of which the checkpoint has nothing."""
    own = {layer: {p for p in found.keys if within(p, layer)} for layer in layers.attention}
    return [layer for layer, paths in own.items() if paths and paths <= found.missing.keys()]


def of_head(tensors: Iterable[str], found: Fit, layers: Layers) -> set[str]:
    """The keys of the checkpoint's heads."""
    kernels = (key_of(("params", *head, "kernel"), found.renames).key for head in layers.heads)
    prefixes = tuple(k.removesuffix("kernel").removesuffix("weight") for k in kernels)
    return {key for key in tensors if key.startswith(prefixes)}
