"""A module's variables from a checkpoint: all of them, or all but what the caller lets be new."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn.attention.mechanism import declared
from flaxattn.errors import InputError, unknown
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.weights.architecture import likeliest
from flaxattn.weights.convert import Fit, fit, key_of
from flaxattn.weights.files import read, unwrapped
from flaxattn.weights.naming import FLAX, Table
from flaxattn.weights.sources import Checkpoint

Source = str | Path | Checkpoint | Mapping[str, np.ndarray]

HEAD, ATTENTION = "head", "attention"
_ADDED = ("recalibrate", "context")  # the roles of layers that can be put into a trained network


class Pretrained(NamedTuple):
    """A checkpoint's weights in a module.

    Fields:
        variables: of the module, as NumPy arrays.
        fresh: the submodules that were newly initialised, such as "fc" or "layer1_0/se".
        left_out: the checkpoint's tensors that have no place in the module: an old head's.
        naming: whose names the checkpoint has: "own" (torchvision's and timm's, as far as they
            need no renames), a source in `module.namings`, "flax" or "table".
    """

    variables: dict[str, Any]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    naming: str


def load(
    module: nn.Module,
    source: Source,
    input_shape: Sequence[int],
    naming: str | Table | None = None,
) -> dict[str, Any]:
    """The variables of `module` filled from torch tensors, as NumPy arrays.

    Args:
        module: any module whose submodules carry the reference's names.
        source: what `fetch` knows (a file, a directory, a Hugging Face repository), what it
            answers, or a mapping from torch's keys to arrays.
        input_shape: (N, H, W, C) of an input, from which the module's own shapes follow.
        naming: one of the source names in `module.namings`, "own", a table of renames, or None to
            take whichever naming explains all keys. A file of Flax arrays (`write`) needs none.

    Every tensor is used exactly once. Left out are `num_batches_tracked` and what a naming calls
    "derived": tensors that torch computes from a layer's fields and keeps beside its weights. The
    arrays take the module's dtypes.

    Raises InputError that lists every missing, unexpected and misshapen tensor, and names the model
    that the tensors look like if it is another; nothing is returned then.
    """
    return load_pretrained(module, source, input_shape, naming=naming).variables


def load_pretrained(
    module: nn.Module,
    source: Source,
    input_shape: Sequence[int],
    *,
    naming: str | Table | None = None,
    allow_new: str | Iterable[str] = (),
    grey: bool = False,
    seed: int = 0,
    entry: str | None = None,
) -> Pretrained:
    """`load` for a module that is not quite the checkpoint's, and a report of what is new.

        model = create_model("resnet50", num_classes=10)
        loaded = load_pretrained(
            model, "timm/resnet50.a1_in1k", (1, 224, 224, 3), allow_new=("head",)
        )
        loaded.fresh        # ("fc",)

    Args:
        module, source, input_shape, naming: as of `load`.
        allow_new: what may be newly initialised where the checkpoint does not have it, one name or
            several. "head": the last layer, `module.head_name` ("fc" if it has none), where its
            shape is another; the checkpoint's is left out, also if the module has none.
            "attention": attention layers (those that recalibrate or bring in context) of which the
            checkpoint has nothing.
        grey: whether to sum the first kernel over its input channels, for images with one, as timm
            does for in_chans=1: a grey image gives what it gave as three equal channels.
        seed: of the new layers, which get what `module.init(jax.random.key(seed), ...)` gives them.
        entry: which state dict of a torch file that has several, as of `read`.

    Raises InputError as `load` does, for anything else that is missing, unexpected or misshapen.
    """
    allowed = {allow_new} if isinstance(allow_new, str) else set(allow_new)
    for name in sorted(allowed - {HEAD, ATTENTION}):
        raise unknown("part that may be new", name, (HEAD, ATTENTION))
    if hasattr(type(module), "feature_channels") and len(input_shape) != 4:  # a network of images
        raise InputError(f"{type(module).__name__} cannot have {_axes(input_shape)}.")
    if grey and input_shape[-1] != 1:
        raise InputError(f"grey=True is for images with one channel: {input_shape} has more.")
    tensors = unwrapped(source) if isinstance(source, Mapping) else read(source, entry=entry)
    hint = "" if isinstance(source, Mapping) else str(source)
    targets, layers = _structure(module, input_shape)
    found = fit(module, targets, tensors, naming)
    if grey and layers.first_kernel in found.misshapen:
        key = found.keys[layers.first_kernel]
        tensors[key] = _summed(tensors[key], -2 if found.naming == FLAX else 1)
        found = fit(module, targets, tensors, naming)

    fresh = _fresh(found, layers, allowed)
    new = {path for path in targets if any(_within(path, layer) for layer in fresh)}
    used = {found.keys[path] for path in found.filled.keys() - new}
    left_out = set()
    if HEAD in allowed:
        prefix = _prefix(layers.head, found.renames)
        left_out = {key for key in tensors if key.startswith(prefix)} - used
    problems = [line for path, line in found.wrong.items() if path not in new]
    problems += [line for key, line in found.unexpected.items() if key not in left_out]
    if problems:
        raise InputError(
            f"the weights do not fit {type(module).__name__}"
            f"{_advice(module, input_shape, found, layers, tensors, hint)}:\n  "
            + "\n  ".join(sorted(problems))
        )
    arrays = {path: array for path, array in found.filled.items() if path not in new}
    arrays |= _initialised(module, input_shape, new, seed)
    return Pretrained(
        unflatten_dict({path: arrays[path] for path in targets}),
        tuple("/".join(layer) for layer in fresh),
        tuple(sorted(left_out)),
        found.naming,
    )


class _Layers(NamedTuple):
    """Where in a module what can be new stands, as paths below a collection."""

    head: tuple[str, ...]
    attention: tuple[tuple[str, ...], ...]
    first_kernel: tuple[str, ...]  # of the first layer that is called, collection first
    first_shape: tuple[int, ...]  # that kernel's


def _structure(module: nn.Module, input_shape: Sequence[int]) -> tuple[dict[tuple, Any], _Layers]:
    """The module's flat abstract variables, and its layers, seen while it is evaluated."""
    called: dict[tuple[str, ...], str | None] = {}

    def note(method, args, kwargs, context):
        if context.module.scope is not None:  # a check of its own fields runs before it has a place
            called.setdefault(context.module.path, declared(context.module, "role"))
        return method(*args, **kwargs)

    try:
        with nn.intercept_methods(note):
            targets = flatten_dict(abstract_variables(module, input_shape))
    except Exception as error:
        if len(input_shape) == 4:
            raise
        raise InputError(
            f"{type(module).__name__} cannot have {_axes(input_shape)} ({error})."
        ) from error
    attention: list[tuple[str, ...]] = []
    for path in sorted(path for path, role in called.items() if path and role in _ADDED):
        if not any(path[: len(outer)] == outer for outer in attention):
            attention.append(path)
    kernels = (("params", *path, "kernel") for path in called)
    first = next((path for path in kernels if path in targets), ())
    head = tuple(getattr(module, "head_name", "fc").split("/"))
    shape = targets[first].shape if first else ()
    return targets, _Layers(head, tuple(attention), first, shape)


def _axes(input_shape: Sequence[int]) -> str:
    """What is likely wrong with a shape that is not (N, H, W, C), which only some layers take."""
    axes = len(input_shape)
    return f"input_shape={tuple(input_shape)} with {axes} axes: images have four, (N, H, W, C)"


def _within(path: Sequence[str], layer: Sequence[str]) -> bool:
    """Whether the array at `path`, collection first, belongs to the submodule `layer`."""
    return tuple(path[1 : 1 + len(layer)]) == tuple(layer)


def _fresh(found: Fit, layers: _Layers, allowed: set[str]) -> list[tuple[str, ...]]:
    """The submodules that are newly initialised: whole ones only."""
    fresh = []
    if HEAD in allowed and any(_within(path, layers.head) for path in found.wrong):
        fresh.append(layers.head)
    if ATTENTION in allowed:
        fresh += _absent(found, layers)
    return fresh


def _absent(found: Fit, layers: _Layers) -> list[tuple[str, ...]]:
    """The attention layers of which the checkpoint has nothing."""
    return [
        layer
        for layer in layers.attention
        if (own := {path for path in found.keys if _within(path, layer)})
        and own <= found.missing.keys()
    ]


def _prefix(layer: Sequence[str], renames: Table | None) -> str:
    """How the keys of all tensors of a submodule begin."""
    return (
        key_of(("params", *layer, "kernel"), renames)
        .key.removesuffix("kernel")
        .removesuffix("weight")
    )


def _is_rgb(found: Fit, layers: _Layers, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the file's first kernel is the module's, but for images of three channels."""
    shape = layers.first_shape
    spatial, channels, features = shape[:-2], shape[-2:-1], shape[-1:]
    rgb = (*spatial, 3, *features) if found.naming == FLAX else (*features, 3, *spatial)
    return channels == (1,) and np.shape(tensors.get(found.keys[layers.first_kernel], ())) == rgb


def _summed(kernel: np.ndarray, axis: int) -> np.ndarray:
    """A kernel for the one channel that all its input channels, along `axis`, are equal to."""
    if np.ndim(kernel) < 2:
        return kernel
    total = np.asarray(kernel).astype(np.float32).sum(axis, keepdims=True)
    return total.astype(np.asarray(kernel).dtype)


def _initialised(
    module: nn.Module, input_shape: Sequence[int], paths: set[tuple], seed: int
) -> dict[tuple, np.ndarray]:
    """What `module.init` gives the arrays at `paths`; the rest is never computed."""
    if not paths:
        return {}
    dtype = getattr(module, "param_dtype", jnp.float32)

    @jax.jit
    def init(key):
        variables = flatten_dict(module.init(key, jnp.zeros(tuple(input_shape), dtype)))
        return {"/".join(path): variables[path] for path in paths}

    arrays = init(jax.random.key(seed))
    return {path: np.asarray(arrays["/".join(path)]) for path in paths}


def _advice(
    module: nn.Module,
    input_shape: Sequence[int],
    found: Fit,
    layers: _Layers,
    tensors: Mapping[str, np.ndarray],
    hint: str,
) -> str:
    """What to do about it, as far as that can be told."""
    if len(input_shape) != 4:
        return f" for {_axes(input_shape)}"
    prefix = _prefix(layers.head, found.renames)
    others = [path for path in found.wrong if not _within(path, layers.head)]
    unexpected = [key for key in found.unexpected if not key.startswith(prefix)]
    if not others and not unexpected:
        sizes = {np.shape(t)[0] for k, t in tensors.items() if k == f"{prefix}bias"}
        classes = "".join(f" (num_classes={size})" for size in sizes)
        return (
            f"; only the head differs, so make the module with the checkpoint's own{classes}, or "
            f"have a new one by load_pretrained(..., allow_new=('head',))"
        )
    if others == [layers.first_kernel] and not unexpected and _is_rgb(found, layers, tensors):
        return (
            "; only its first kernel does not, which load_pretrained(..., grey=True) sums over the "
            "input channels for images with one"
        )
    absent = _absent(found, layers)
    if not unexpected and all(any(_within(p, layer) for layer in absent) for p in others):
        return (
            "; only attention layers are missing, which are newly initialised by "
            "load_pretrained(..., allow_new=('attention',))"
        )
    name = likeliest(module, found, tensors, hint=hint)
    return f"; these look like the weights of {name}" if name else ""
