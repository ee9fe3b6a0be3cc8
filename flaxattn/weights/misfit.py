"""What an error says of weights that do not fit: what is wrong, and what to do about it."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.attention.mechanism import declared, required_fields
from flaxattn.errors import InputError
from flaxattn.layers.abstract_variables import Shape, abstract_variables
from flaxattn.weights.architecture import likeliest
from flaxattn.weights.convert import Fit, fit
from flaxattn.weights.layers import Attempt, Layers, absent, axes_of, first_shape, of_head, of_one
from flaxattn.weights.naming import FLAX

_FEW = 4  # lines of each kind, at most
_LINE, _LONGEST = 200, 600  # characters of such a line, and of the whole


def misfit(attempt: Attempt, problems: Sequence[str]) -> InputError:
    """The error for `problems`, a line for each."""
    words = f"the weights do not fit {type(attempt.module).__name__}{_advice(attempt)}:"
    return InputError(words + _few(problems, _LONGEST - len(words)))


def _advice(attempt: Attempt) -> str:
    """What to do about it, as far as that can be told."""
    module, input_shape, layers, checkpoint, tensors, found = attempt
    if len(shape := first_shape(input_shape)) != 4:
        return f" for {axes_of(shape)}"
    if found.damaged:
        return "; NaN and infinite numbers are no weights, so get the file again"
    if prefix := _prefix_that_fits(found, tensors):
        return f"; all of its tensors are there below {prefix!r}: pass prefix={prefix!r}"
    head = of_head(tensors, found, layers)
    others = [path for path in found.wrong if not of_one(path, layers.heads)]
    if found.unexpected.keys() <= head:
        without = absent(found, layers)
        if not others:
            sizes = {len(tensors[key]) for key in head if key.endswith("bias")}
            classes = "".join(f" (num_classes={size})" for size in sizes)
            return (
                f"; only the head differs, so make the module with the checkpoint's own{classes}, "
                f"or have a new one by load_pretrained(..., allow_new=('head',))"
            )
        if others == [layers.first_kernel] and _is_rgb(found, layers, tensors):
            return (
                "; only its first kernel does not, which load_pretrained(..., grey=True) sums over "
                "the input channels for images with one"
            )
        if all(of_one(path, without) for path in others):
            return (
                "; only attention layers are missing, which are newly initialised by "
                "load_pretrained(..., allow_new=('attention',))"
            )
    if variants := _fitting_variants(module, input_shape, tensors):
        names = " or ".join(f"{type(module).__name__}.{name}(...)" for name in variants)
        choice = ", and which of them they are of they do not say" if len(variants) > 1 else ""
        return f"; {names} has exactly these tensors{choice}"
    name = likeliest(tensors, len(found.filled), checkpoint)
    return f"; these look like the weights of {name}" if name else ""


def _fitting_variants(
    module: nn.Module, input_shape: Shape | Sequence[Shape], tensors: Mapping[str, np.ndarray]
) -> list[str]:
    """The variants of a mechanism that `tensors` may be of."""
    required = {name: getattr(module, name) for name in required_fields(module)}
    names = []
    for name in declared(type(module), "variants"):
        other = getattr(type(module), name)(**required)
        with contextlib.suppress(InputError):  # it may refuse such a map
            found = fit(other, flatten_dict(abstract_variables(other, input_shape)), tensors)
            if not found.wrong and not found.unexpected:
                names.append(name)
    return names


def _is_rgb(found: Fit, layers: Layers, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the file's first kernel is the module's, but for images of three channels."""
    shape = layers.targets[layers.first_kernel].shape
    spatial, channels, features = shape[:-2], shape[-2:-1], shape[-1:]
    rgb = (*spatial, 3, *features) if found.naming == FLAX else (*features, 3, *spatial)
    return channels == (1,) and np.shape(tensors.get(found.keys[layers.first_kernel], ())) == rgb


def _prefix_that_fits(found: Fit, tensors: Iterable[str]) -> str:
    """What stands before the key of every array of the module, if one thing does; else ""."""
    keys = set(tensors)
    first = next(iter(found.keys.values()), "")
    before = (key.removesuffix(first) for key in keys if key.endswith(f".{first}"))
    fitting = [p for p in before if all(f"{p}{key}" in keys for key in found.keys.values())]
    return fitting[0] if len(fitting) == 1 else ""


def _few(problems: Sequence[str], room: int) -> str:
    """As many lines of each kind as there is room for, below each other, and how many are left."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for line in sorted(problems):
        kinds[line.partition(":")[0]].append(line)
    for count in range(_FEW, -1, -1):
        lines = []
        for kind, found in kinds.items():
            lines += [line[:_LINE] for line in found[:count]]
            if len(found) > count:
                lines.append(f"{kind}: {len(found) - count}{' more' if count else ''}")
        if len(text := "".join(f"\n  {line}" for line in lines)) <= room:
            break
    return text
