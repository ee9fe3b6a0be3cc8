"""Torch tensors to Flax arrays of a module, and back."""

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
from flaxattn.weights.naming import Table, table, tables, torch_name

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

    Every tensor is used exactly once; `num_batches_tracked` is the one kind that is left out. The
    arrays take the module's dtypes.

    Raises InputError that lists every missing, unexpected and misshapen tensor; nothing is
    returned then.
    """
    tensors = read(source) if isinstance(source, str | Path) else dict(source)
    tensors = {key: t for key, t in tensors.items() if key.rpartition(".")[2] != _COUNTER}
    targets = flatten_dict(_abstract_variables(module, input_shape))

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
    itself supplies `num_batches_tracked`.
    """
    renames = table(naming, module)
    tensors = {}
    for (_, *path), array in flatten_dict(dict(variables)).items():
        key, linear = torch_name(path, renames)
        if key in tensors:
            raise InputError(f"two arrays would be called {key}: the naming is not one to one.")
        array = np.asarray(array)
        if path[-1] == "kernel":
            array = array.reshape(array.shape[-2:]) if linear else array
            array = _output_first(array)
        tensors[key] = array
    return tensors


def _abstract_variables(module: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    x = jax.ShapeDtypeStruct(tuple(input_shape), getattr(module, "param_dtype", jnp.float32))
    return jax.eval_shape(module.init, jax.random.key(0), x)


def _fill(targets, tensors, renames: Table) -> tuple[dict[tuple, np.ndarray], list[str]]:
    """Arrays for `targets` as far as they are there and fit, and a line for each that does not."""
    filled, problems, used = {}, [], set()
    for path, target in targets.items():
        key = torch_name(path[1:], renames).key
        if key not in tensors:
            problems.append(f"missing: {key} for {'/'.join(path)} {target.shape}")
            continue
        used.add(key)
        array = np.asarray(tensors[key])
        if path[-1] == "kernel":
            array = _output_last(array)
        if _without_ones(array.shape) != _without_ones(target.shape):
            problems.append(
                f"misshapen: {key} {np.shape(tensors[key])} for {'/'.join(path)} {target.shape}"
            )
            continue
        filled[path] = array.reshape(target.shape).astype(target.dtype)
    problems += [f"unexpected: {key} {np.shape(tensors[key])}" for key in tensors.keys() - used]
    return filled, sorted(problems)


def _output_last(weight: np.ndarray) -> np.ndarray:
    """(O, I, *spatial) -> (*spatial, I, O)."""
    return weight.transpose(*range(2, weight.ndim), 1, 0) if weight.ndim > 1 else weight


def _output_first(kernel: np.ndarray) -> np.ndarray:
    """(*spatial, I, O) -> (O, I, *spatial), contiguous as a file wants it."""
    axes = range(kernel.ndim)
    return np.ascontiguousarray(kernel.transpose(axes[-1], axes[-2], *axes[:-2]))


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
