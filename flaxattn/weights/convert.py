"""Torch tensors to Flax arrays of a module, and back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.errors import InputError
from flaxattn.weights.naming import (
    FLAX,
    OWN,
    Naming,
    Table,
    TorchName,
    is_derived,
    table,
    tables,
    torch_name,
)

Variables = dict[str, Any]  # collections, such as "params", of nested arrays
TreePath = tuple[str, ...]  # to one array, its collection first
Targets = Mapping[TreePath, jax.ShapeDtypeStruct]


class Fit(NamedTuple):
    """How far a file's tensors are the arrays of a module.

    Fields:
        naming, renames: the naming that explains most, and its table, None for names of ours.
        keys: the tensor's key for each path of the module.
        filled: the arrays that are there and fit, by path.
        missing, misshapen: a line for each path whose tensor is not there, or does not fit.
        unexpected: a line for each key that is no array of the module.
    """

    naming: str
    renames: Table | None
    keys: dict[TreePath, str]
    filled: dict[TreePath, np.ndarray]
    missing: dict[TreePath, str]
    misshapen: dict[TreePath, str]
    unexpected: dict[str, str]

    @property
    def wrong(self) -> dict[TreePath, str]:
        return self.missing | self.misshapen

    @property
    def problems(self) -> list[str]:
        return sorted([*self.wrong.values(), *self.unexpected.values()])


def to_torch(
    variables: Mapping[str, Any],
    naming: Naming | None = None,
    *,
    module: nn.Module | None = None,
) -> dict[str, np.ndarray]:
    """The torch state dict of `variables`: `load` read backwards, bit for bit.

    `naming` is a source name in `module.namings`, such as "timm"; a table of renames; or None, or
    "own", for our own names, which are the reference's for many networks and not for all. Under
    the reference's names it loads with `load_state_dict(strict=True)`: torch itself supplies
    `num_batches_tracked`. Derived tensors are not in it.

    Raises InputError for an unknown naming, one without its module, and one under which two arrays
    have the same name.
    """
    renames = table(naming, module)
    tensors = {}
    for (_, *path), array in flatten_dict(dict(variables)).items():
        key, layout = torch_name(path, renames)
        if key in tensors:
            raise InputError(f"two arrays would be called {key}: the naming is not one to one.")
        tensors[key] = _theirs(np.asarray(array), path[-1], layout)
    return tensors


def fit(
    module: nn.Module,
    targets: Targets,
    tensors: Mapping[str, np.ndarray],
    naming: Naming | None = None,
) -> Fit:
    """Arrays for `targets`, the module's flat abstract variables, as far as `tensors` has them.

    With naming=None, by whichever naming leaves least over. Tensors under names of ours with
    slashes, as `write` names them, are taken as they are, whatever the naming.
    """
    collections = tuple({f"{path[0]}/" for path in targets})
    if tensors and all(key.startswith(collections) for key in tensors):
        return _fill(targets, tensors, FLAX, None)
    if naming is not None:
        name = naming if isinstance(naming, str) else "table"
        return _fill(targets, tensors, name, table(naming, module))
    candidates = {OWN: (), **tables(module)}
    return min(
        (_fill(targets, tensors, name, renames) for name, renames in candidates.items()),
        key=lambda attempt: len(attempt.problems),
    )


def _fill(
    targets: Targets, tensors: Mapping[str, np.ndarray], naming: str, renames: Table | None
) -> Fit:
    """What there is under the names that `renames` gives, None for the arrays' own paths."""
    if renames is not None:
        tensors = {key: t for key, t in tensors.items() if not is_derived(key, renames)}
    keys, filled, missing, misshapen = {}, {}, {}, {}
    for path, target in targets.items():
        key, layout = key_of(path, renames)
        keys[path] = key
        if key not in tensors:
            missing[path] = f"missing: {key} for {'/'.join(path)} {target.shape}"
            continue
        array = _ours(np.asarray(tensors[key]), path[-1], layout, target.shape)
        if not _fits(array.shape, target.shape):
            shape = np.shape(tensors[key])
            misshapen[path] = f"misshapen: {key} {shape} for {'/'.join(path)} {target.shape}"
            continue
        filled[path] = array.reshape(target.shape).astype(target.dtype)
    unexpected = {
        key: f"unexpected: {key} {np.shape(tensors[key])}"
        for key in tensors.keys() - set(keys.values())
    }
    return Fit(naming, renames, keys, filled, missing, misshapen, unexpected)


def key_of(path: Sequence[str], renames: Table | None) -> TorchName:
    """The key and the layout of the tensor for the array at `path`, collection first."""
    return TorchName("/".join(path), FLAX) if renames is None else torch_name(path[1:], renames)


def _ours(tensor: np.ndarray, leaf: str, layout: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor with its axes in our order; still without regard to axes of one."""
    if layout == FLAX:
        return tensor
    if layout == "linear" and leaf == "kernel":
        matrix = (shape[-1], math.prod(shape[:-1]))
        if tensor.shape == matrix:
            tensor = tensor.reshape(shape[-1], shape[-2], *shape[:-2])
    if layout == "flat" and tensor.size == math.prod(shape):
        tensor = tensor.reshape(shape[0], shape[-1], shape[-2], *shape[1:-2])
    if layout in ("stacked", "flat") and tensor.ndim > 2:
        return tensor.transpose(0, *range(3, tensor.ndim), 2, 1)
    if (
        leaf == "kernel" and tensor.ndim > 1 and layout != "matrix"
    ):  # (O, I, *spatial) -> (*spatial, I, O)
        return tensor.transpose(*range(2, tensor.ndim), 1, 0)
    return tensor


def _theirs(array: np.ndarray, leaf: str, layout: str) -> np.ndarray:
    """One of our arrays as torch lays it out, contiguous as a file wants it."""
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
    return np.ascontiguousarray(array)


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether they are equal, without regard to axes of one if their numbers of axes differ."""
    if len(shape) == len(target):
        return tuple(shape) == tuple(target)
    return _without_ones(shape) == _without_ones(target)


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
