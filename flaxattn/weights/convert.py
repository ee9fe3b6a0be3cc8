"""Torch tensors to Flax arrays of a module, and back."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn.errors import InputError
from flaxattn.weights.files import read
from flaxattn.weights.naming import Table, is_derived, table, tables, torch_name

_COUNTER = "num_batches_tracked"  # torch's count of training steps: no part of the function


def load(
    module: nn.Module,
    source: str | Path | Mapping[str, np.ndarray],
    input_shape: Sequence[int],
    naming: str | Table | None = None,
) -> dict[str, Any]:
    """The variables of `module` filled from torch tensors, as NumPy arrays.

    Args:
        module: any module whose submodules carry the reference's names.
        source: a file that `read` knows, or a mapping from torch's keys to arrays.
        input_shape: (N, H, W, C) of an input, from which the module's own shapes follow.
        naming: one of the source names in `module.namings`, a table of renames, or None to take
            whichever naming explains all keys.

    Every tensor is used exactly once. Left out are `num_batches_tracked` and what a naming calls
    "derived": tensors that torch computes from a layer's fields and keeps beside its weights. The
    arrays take the module's dtypes.

    Raises InputError that lists every missing, unexpected and misshapen tensor; nothing is
    returned then.
    """
    tensors = read(source) if isinstance(source, str | Path) else dict(source)
    tensors = {key: t for key, t in tensors.items() if key.rpartition(".")[2] != _COUNTER}
    targets = flatten_dict(abstract_variables(module, input_shape))

    candidates = [table(naming, module)] if naming is not None else [(), *tables(module).values()]
    attempts = [_fill(targets, tensors, candidate) for candidate in candidates]
    filled, problems = min(attempts, key=lambda attempt: len(attempt[1]))
    if problems:
        raise InputError(
            f"the weights do not fit {type(module).__name__}:\n  " + "\n  ".join(problems)
        )
    return unflatten_dict(filled)


def to_torch(
    variables: Mapping[str, Any],
    naming: str | Table | None = None,
    *,
    module: nn.Module | None = None,
) -> dict[str, np.ndarray]:
    """The torch state dict of `variables`: `load` read backwards, bit for bit.

    `naming` is a source name in `module.namings`, a table of renames, or None for our own names
    (torchvision's and timm's, for what they have). Loads with `load_state_dict(strict=True)`: torch
    itself supplies `num_batches_tracked`. Derived tensors are not in it.
    """
    renames = table(naming, module)
    tensors = {}
    for (_, *path), array in flatten_dict(dict(variables)).items():
        key, layout = torch_name(path, renames)
        if key in tensors:
            raise InputError(f"two arrays would be called {key}: the naming is not one to one.")
        tensors[key] = _theirs(np.asarray(array), path[-1], layout)
    return tensors


def abstract_variables(module: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    """Shapes and dtypes of the module's variables for an input (N, H, W, C); makes no array."""
    x = jax.ShapeDtypeStruct(tuple(input_shape), getattr(module, "param_dtype", jnp.float32))
    return jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), x)


def _fill(targets, tensors, renames: Table) -> tuple[dict[tuple, np.ndarray], list[str]]:
    """Arrays for `targets` as far as they are there and fit, and a line for each that does not."""
    filled, problems, used = {}, [], set()
    tensors = {key: tensor for key, tensor in tensors.items() if not is_derived(key, renames)}
    for path, target in targets.items():
        key, layout = torch_name(path[1:], renames)
        if key not in tensors:
            problems.append(f"missing: {key} for {'/'.join(path)} {target.shape}")
            continue
        used.add(key)
        array = _ours(np.asarray(tensors[key]), path[-1], layout, target.shape)
        if not _fits(array.shape, target.shape):
            problems.append(
                f"misshapen: {key} {np.shape(tensors[key])} for {'/'.join(path)} {target.shape}"
            )
            continue
        filled[path] = array.reshape(target.shape).astype(target.dtype)
    problems += [f"unexpected: {key} {np.shape(tensors[key])}" for key in tensors.keys() - used]
    return filled, sorted(problems)


def _ours(tensor: np.ndarray, leaf: str, layout: str, shape: Sequence[int]) -> np.ndarray:
    """A torch tensor with its axes in our order; still without regard to axes of one."""
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
