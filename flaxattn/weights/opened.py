"""The tensors of whatever a caller gives as weights."""

import os
import reprlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxattn.errors import InputError
from flaxattn.weights.files import read, unwrapped
from flaxattn.weights.sources import Checkpoint, fetch

Source = str | Path | Checkpoint | Mapping[str, np.ndarray]

_COUNTER = "num_batches_tracked"  # torch's count of training steps: no part of the function
_LONGEST = 100  # characters of a key in a sentence


def opened(
    source: Source, *, prefix: str = "", entry: str | None = None
) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """The checkpoint that `source` means, without a path for a mapping, and its tensors.

    Args:
        source: see `load`.
        prefix: take the tensors whose keys begin with it, under the rest of their keys; of Flax's
            arrays those whose paths do, behind the collection.
        entry: see `read`.

    Raises InputError for what is not a source, keys that are not strings, tensors that are not
    arrays of real numbers, a prefix that no key has, and for what `fetch` and `read` refuse.
    """
    if not isinstance(prefix, str):
        raise InputError(f"prefix={prefix!r} must be the beginning of keys, such as 'backbone.'.")
    if isinstance(source, str | os.PathLike | Checkpoint):
        checkpoint = source if isinstance(source, Checkpoint) else fetch(source)
        tensors = read(checkpoint, entry=entry)
    else:
        checkpoint, tensors = Checkpoint(Path(), {}), _mapping(source)
        if entry is not None:
            raise InputError(f"entry={entry!r} is for a file: pass source[{entry!r}] instead.")
    tensors = {
        below: _array(key, tensor)
        for key, tensor in tensors.items()
        if (below := _below(key, prefix)) and not key.endswith(_COUNTER)
    }
    if prefix and not tensors:
        raise InputError(f"no tensor's key begins with prefix={prefix!r}: leave it out.")
    return checkpoint, tensors


def _below(key: str, prefix: str) -> str | None:
    """What follows the prefix, or None if the key does not begin with it."""
    collection, slash, path = key.partition("/")
    if not slash:
        return key.removeprefix(prefix) if key.startswith(prefix) else None
    begin = prefix.replace(".", "/")
    return f"{collection}/{path.removeprefix(begin)}" if path.startswith(begin) else None


def _mapping(source: Any) -> dict[str, Any]:
    if not isinstance(source, Mapping):
        kind = type(source).__name__
        if callable(getattr(source, "state_dict", None)):
            raise InputError(
                f"source is a torch module, {kind}: pass "
                f"{{k: v.numpy() for k, v in module.state_dict().items()}}."
            )
        raise InputError(
            f"source is of type {kind}: pass a path, the name of a repository, what fetch returns, "
            f"or a mapping from torch's keys to arrays."
        )
    for key in source:
        if not isinstance(key, str):
            raise InputError(
                f"source has the key {reprlib.repr(key)}: its keys must be strings, such as "
                f"'conv1.weight'."
            )
    return unwrapped(source)


def _array(key: str, tensor: Any) -> np.ndarray:
    key, kind = key[:_LONGEST], type(tensor).__name__
    try:
        array = np.asarray(tensor)
    except Exception as error:  # torch has several, for other devices, gradients and bfloat16
        reason = textwrap.shorten(str(error), 150)
        raise InputError(
            f"{key} is of type {kind}, and NumPy cannot take it ({reason}): pass an array, for a "
            f"torch tensor v.detach().cpu().numpy(), after v.float() if it is bfloat16."
        ) from error
    # JAX knows bfloat16 as a floating dtype.
    if not any(jnp.issubdtype(array.dtype, of) for of in (np.floating, np.integer, np.bool_)):
        raise InputError(
            f"{key} is of type {kind} and dtype {array.dtype}: pass an array of real numbers, and "
            f"of a training checkpoint the state dict in it."
        )
    return array
