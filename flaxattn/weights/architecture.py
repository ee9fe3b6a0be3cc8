"""Which model of MODELS a checkpoint is of, by the names and sizes of its tensors."""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.attention.mechanism import Renames
from flaxattn.models import MODELS, ResNet, create_model
from flaxattn.weights.convert import key_of
from flaxattn.weights.naming import tables
from flaxattn.weights.sources import Checkpoint

_LONGEST = 100  # characters of a name in a sentence


class _Absent(Exception):
    """A model has an array that the file does not have."""


def likeliest(tensors: Mapping[str, np.ndarray], used: int, checkpoint: Checkpoint) -> str | None:
    """The model that has more than half of `tensors`, and more than `used`; None if none has.

    What the checkpoint's config and path name is tried first. Of models with equal tensors the
    plain one stands first in MODELS.
    """
    stated = checkpoint.config.get("architecture")
    if isinstance(stated, str) and stated not in MODELS:
        return stated[:_LONGEST]
    hint = f"{checkpoint.path} {stated}"
    lengths = {np.size(tensor) for tensor in tensors.values() if np.ndim(tensor) == 1}
    blocks = {block for key in tensors for block in re.findall(r"\blayer(\d)[._](\d+)\b", key)}
    sizes = tuple(Counter(stage for stage, _ in sorted(blocks)).values())
    best, most = None, max(used, len(tensors) // 2)
    for name in sorted(MODELS, key=lambda name: -len(name) if name in hint else 0):
        model = create_model(name, num_classes=0)
        if isinstance(model, ResNet) and model.stage_sizes != sizes:
            continue
        if lengths.issuperset(model.feature_channels) and (count := _count(model, tensors)) > most:
            best, most = name, count
            if most >= len(tensors) - 2:  # all but a head
                break
    return best


def _count(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> int:
    """How many arrays the model has, or 0 if `tensors` lacks one of them.

    The evaluation ends with the first that is lacking: of most models, in their first block.
    """
    namings: list[Renames | None] = [None, (), *tables(model).values()]
    seen: set[tuple[str, ...]] = set()

    def compare(method, args, kwargs, context):
        result, module = method(*args, **kwargs), context.module
        arrays = flatten_dict(module.variables) if context.method_name == "__call__" else {}
        for (collection, *rest), array in arrays.items():
            path = (collection, *module.path, *rest)
            if path not in seen:
                seen.add(path)
                keys = [key_of(path, naming).key for naming in namings]
                found = [np.size(tensors.get(key, ())) == array.size for key in keys]
                namings[:] = itertools.compress(namings, found)
            if not namings:
                raise _Absent
        return result

    def init(images):
        # Caught here, for on its way out JAX would look through the whole stack.
        with contextlib.suppress(_Absent), nn.intercept_methods(compare):
            model.init(jax.random.key(0), images)

    jax.eval_shape(init, jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    return len(seen) if namings else 0
