"""Torch tensors to Flax arrays of a module, and back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.attention.mechanism import Renames
from flaxattn.errors import InputError
from flaxattn.layers.initialise import TreePath
from flaxattn.weights.naming import (
    ELSEWHERE,
    FLAX,
    OWN,
    Naming,
    TorchName,
    is_derived,
    table,
    tables,
    torch_name,
)

Variables = dict[str, Any]  # collections, such as "params", of nested arrays
Targets = Mapping[TreePath, jax.ShapeDtypeStruct]


class Fit(NamedTuple):
    """How far a file's tensors are the arrays of a module.

    Fields:
        naming: the name of what explains most keys.
        renames: its renames, None for the paths of Flax arrays.
        keys: the tensor's key for each path of the module, but for what the source has elsewhere.
        filled: the arrays that are there and fit, by path.
        missing: a line for each path without a tensor.
        misshapen: a line for each path whose tensor does not fit.
        damaged: a line for each path whose tensor has numbers that are not finite.
        unexpected: a line for each key that stands for no array of the module.
    """

    naming: str
    renames: Renames | None
    keys: dict[TreePath, str]
    filled: dict[TreePath, np.ndarray]
    missing: dict[TreePath, str]
    misshapen: dict[TreePath, str]
    damaged: dict[TreePath, str]
    unexpected: dict[str, str]

    @property
    def wrong(self) -> dict[TreePath, str]:
        return self.missing | self.misshapen | self.damaged


def to_torch(
    variables: Mapping[str, Any],
    naming: Naming | None = None,
    *,
    module: nn.Module | None = None,
) -> dict[str, np.ndarray]:
    """The torch state dict of `variables`: `load` read backwards, bit for bit.

    Args:
        variables: of a module, as `load` returns them.
        naming: a source in `module.namings`, such as "timm"; renames; or None or "own" for our own
            names, which for many networks are the reference's.
        module: whose variables they are, where `naming` is a source.

    `load_state_dict(strict=True)` takes it, for torch itself supplies `num_batches_tracked`.
    Derived tensors are left out, and so is what the source keeps in another module.

    Raises InputError for an unknown naming, one without its module, and one under which two arrays
    have the same name.
    """
    renames = table(naming, module)
    tensors = {}
    for (_, *path), array in flatten_dict(dict(variables)).items():
        key, layout = torch_name(path, renames)
        if layout == ELSEWHERE:
            continue
        if key in tensors:
            raise InputError(f"two arrays would be called {key}: give each a name of its own.")
        theirs = _theirs(np.asarray(array), path[-1], layout)
        tensors[key] = np.ascontiguousarray(theirs)  # as a file wants it
    return tensors


def fit(
    module: nn.Module,
    targets: Targets,
    tensors: Mapping[str, np.ndarray],
    naming: Naming | None = None,
) -> Fit:
    """Arrays for `targets`, the module's flat abstract variables, as far as `tensors` has them.

    Without a naming, by whichever leaves least over; of several, by the one that `to_torch` gives
    the tensors' own shapes back under. Tensors under the paths of Flax arrays, as
    `write` names them, are taken as they are, whatever the naming.
    """
    collections = tuple({f"{path[0]}/" for path in targets})
    if tensors and all(key.startswith(collections) for key in tensors):
        return _fill(targets, tensors, FLAX, None)
    if naming is not None:
        name = naming if isinstance(naming, str) else "table"
        return _fill(targets, tensors, name, table(naming, module))
    candidates = {OWN: (), **tables(module)}
    attempts = [_fill(targets, tensors, name, renames) for name, renames in candidates.items()]
    left = [len(attempt.wrong) + len(attempt.unexpected) for attempt in attempts]
    best = [attempt for attempt, count in zip(attempts, left, strict=True) if count == min(left)]
    return best[0] if len(best) == 1 else min(best, key=lambda a: _reshaped(a, tensors))


def _fill(
    targets: Targets, tensors: Mapping[str, np.ndarray], naming: str, renames: Renames | None
) -> Fit:
    """What there is under the names that `renames` gives, None for the arrays' own paths."""
    found = Fit(naming, renames, {}, {}, {}, {}, {}, {})
    for path, target in targets.items():
        key, layout = key_of(path, renames)
        if layout == ELSEWHERE:
            continue
        found.keys[path] = key
        place = f"{'/'.join(path)} {target.shape}"
        if key not in tensors:
            found.missing[path] = f"missing: {key} for {place}"
            continue
        array = _ours(np.asarray(tensors[key]), path[-1], layout, target.shape)
        if bad := np.size(array) - np.count_nonzero(np.isfinite(array)):
            found.damaged[path] = f"damaged: {key} has {bad} NaN or infinite of {np.size(array)}"
        elif _fits(array.shape, target.shape):
            found.filled[path] = array.reshape(target.shape).astype(target.dtype)
        else:
            found.misshapen[path] = f"misshapen: {key} {np.shape(tensors[key])} for {place}"
    for key in tensors.keys() - set(found.keys.values()):
        if not is_derived(key, renames or ()):
            found.unexpected[key] = f"unexpected: {key} {np.shape(tensors[key])}"
    return found


def _reshaped(found: Fit, tensors: Mapping[str, np.ndarray]) -> int:
    """How many tensors `to_torch` would return in another shape."""
    shapes = (
        (found.keys[path], _theirs(np.broadcast_to(False, array.shape), path[-1], layout).shape)
        for path, array in found.filled.items()
        for layout in [key_of(path, found.renames).layout]
    )
    return sum(np.shape(tensors[key]) != shape for key, shape in shapes)


def key_of(path: Sequence[str], renames: Renames | None) -> TorchName:
    """The key and the layout of the tensor for the array at `path`, collection first."""
    return TorchName("/".join(path), FLAX) if renames is None else torch_name(path[1:], renames)


def _ours(tensor: np.ndarray, leaf: str, layout: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor with its axes in our order; still without regard to axes of one."""
    if layout == FLAX:
        return tensor
    if layout == "linear" and leaf == "kernel":
        if tensor.shape == (shape[-1], math.prod(shape[:-1])):
            tensor = tensor.reshape(shape[-1], shape[-2], *shape[:-2])
    elif layout == "flat" and tensor.size == math.prod(shape):
        tensor = tensor.reshape(shape[0], shape[-1], shape[-2], *shape[1:-2])
    if layout in ("stacked", "flat") and tensor.ndim > 2:
        return tensor.transpose(0, *range(3, tensor.ndim), 2, 1)
    if leaf == "kernel" and tensor.ndim > 1 and layout != "matrix":
        return tensor.transpose(*range(2, tensor.ndim), 1, 0)  # (O, I, *spatial)
    return tensor


def _theirs(array: np.ndarray, leaf: str, layout: str) -> np.ndarray:
    """One of our arrays as torch lays it out."""
    if layout in ("stacked", "flat") and array.ndim > 2:
        last = array.ndim - 1
        array = array.transpose(0, last, last - 1, *range(1, last - 1))
        array = array.reshape(len(array), -1) if layout == "flat" else array
    elif layout == "matrix":
        array = array.reshape(array.shape[-2:])
    elif leaf == "kernel":
        array = array.transpose(-1, -2, *range(array.ndim - 2))
        array = array.reshape(len(array), -1) if layout == "linear" else array
    elif not layout.strip("1n") and layout.count("n") == array.ndim > 0:
        sizes = iter(array.shape)
        array = array.reshape([next(sizes) if axis == "n" else 1 for axis in layout])
    return array


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether they are equal, without regard to axes of one if their numbers of axes differ."""
    if len(shape) == len(target):
        return tuple(shape) == tuple(target)
    return [size for size in shape if size != 1] == [size for size in target if size != 1]
