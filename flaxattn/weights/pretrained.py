"""A module's variables from a checkpoint: all of them, or all but what the caller lets be new."""

import contextlib
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn.attention.mechanism import declared, required_fields
from flaxattn.errors import InputError, unknown
from flaxattn.layers.abstract_variables import Shape, abstract_input, abstract_variables
from flaxattn.layers.initialise import initialise
from flaxattn.models import MODELS
from flaxattn.models.backbone import Backbone
from flaxattn.models.overview import overview
from flaxattn.weights.architecture import likeliest, stated_model
from flaxattn.weights.convert import Fit, Targets, TreePath, Variables, fit, key_of
from flaxattn.weights.naming import FLAX, Naming
from flaxattn.weights.opened import Source, opened
from flaxattn.weights.sources import Checkpoint

HEAD, ATTENTION = "head", "attention"
_FEW = 4  # lines of each kind that an error shows, at most
_LINE, _LONGEST = 200, 600  # characters of such a line, and of the whole


class Pretrained(NamedTuple):
    """A checkpoint's weights in a module.

    Fields:
        variables: of the module, as NumPy arrays.
        fresh: the submodules that were newly initialised, such as "fc" or "layer1_0/se".
        left_out: the keys of the old head, which has no place in the module.
        naming: whose names the checkpoint has: a source in `module.namings`; "own", the names of
            the module itself; "flax", the paths of Flax arrays; or "table", the renames given.
    """

    variables: Variables
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    naming: str


def load(
    module: nn.Module,
    source: Source,
    input_shape: Shape | Sequence[Shape],
    naming: Naming | None = None,
    *,
    prefix: str = "",
) -> Variables:
    """The variables of `module` filled from a checkpoint, as NumPy arrays of the module's dtypes.

    Args:
        module: any whose submodules carry the reference's names.
        source: a file, a directory or a Hugging Face repository (`fetch`), what `fetch` returns, or
            a mapping from torch's keys to arrays.
        input_shape: (N, H, W, C) of an input, from which the shapes of the variables follow; or a
            list of them for a module that takes several, as `SharedAttention`.
        naming: a source in `module.namings`, "own", renames, or None to find it. A file of Flax
            arrays (`write`) needs none.
        prefix: take the tensors whose keys begin with it, such as "backbone.", and no others. Of
            Flax's arrays it is the path behind the collection that begins with it.

    A file does not say which of a mechanism's variants it is of where these have the same tensors:
    make the module with the right one (a table in docs/weights.md).

    Every tensor is used exactly once, but for `num_batches_tracked` and what a naming calls
    "derived": tensors that torch computes from a layer's fields and keeps beside its weights.

    Raises InputError with the first of the missing, unexpected, misshapen and damaged tensors and
    the number of the others, and with what to do or of which other model they are; and for anything
    else as a source, such as a torch module, a shape, a naming or a prefix.
    """
    return load_pretrained(module, source, input_shape, naming=naming, prefix=prefix).variables


def load_pretrained(
    module: nn.Module,
    source: Source,
    input_shape: Shape | Sequence[Shape],
    *,
    naming: Naming | None = None,
    prefix: str = "",
    allow_new: str | Iterable[str] = (),
    grey: bool = False,
    seed: int = 0,
    entry: str | None = None,
    other_architecture: bool = False,
) -> Pretrained:
    """`load` for a module that is not quite the checkpoint's, and a report of what is new.

        model = create_model("resnet50", num_classes=10)
        loaded = load_pretrained(
            model, "timm/resnet50.a1_in1k", (1, 224, 224, 3), allow_new=("head",)
        )
        loaded.fresh        # ("fc",)

    Args:
        module, source, input_shape, naming, prefix: see `load`.
        allow_new: what may be newly initialised, one name or several. "head": the last layer or
            layers, `module.head_name` ("fc" if it does not say), where the checkpoint's has another
            shape; that one is left out, even if the module has no head. "attention": layers that
            recalibrate or bring in context, where the checkpoint has nothing of them.
        grey: whether to sum the first kernel over its input channels, for images with one, as timm
            does for in_chans=1: a grey image gives what it gave as three equal channels.
        seed: of the new layers (`initialise`).
        entry: which state dict of a torch file that has several (`read`).
        other_architecture: whether the weights may be those of a network that has the same tensors
            and computes something else, as tf_efficientnet_b0 beside efficientnet_b0. Which they
            are of, the checkpoint's config says, or their names.

    Raises InputError for anything else that is missing, unexpected or misshapen, as `load` does.
    """
    allowed = {allow_new} if isinstance(allow_new, str) else set(allow_new)
    for name in sorted(allowed - {HEAD, ATTENTION}):
        raise unknown("part that may be new", name, (HEAD, ATTENTION))
    shape = _first_shape(input_shape)
    if isinstance(module, Backbone):
        if len(shape) != 4:
            raise InputError(f"{type(module).__name__} cannot have {_axes(shape)}.")
        batch, channels, *size = shape
        if channels in (1, 3) and min(size) > 4:
            raise InputError(
                f"input_shape={shape} has its channels first: give (N, H, W, C), "
                f"{(batch, *size, channels)}."
            )
    if grey and shape[-1] != 1:
        raise InputError(f"grey=True is for images with one channel: {shape} has more.")
    checkpoint, tensors = opened(source, prefix=prefix, entry=entry)
    layers = _layers(module, input_shape)
    found = fit(module, layers.targets, tensors, naming)
    if grey and layers.first_kernel in found.misshapen:
        key = found.keys[layers.first_kernel]
        tensors[key] = _summed(tensors[key], -2 if found.naming == FLAX else 1)
        found = fit(module, layers.targets, tensors, naming)

    fresh = []
    if HEAD in allowed:
        fresh += [h for h in layers.heads if any(_within(path, h) for path in found.wrong)]
    if ATTENTION in allowed:
        fresh += _absent(found, layers)
    new = [path for path in found.keys if _of_one(path, fresh)]
    arrays = {path: array for path, array in found.filled.items() if path not in new}
    left_out: set[str] = set()
    if HEAD in allowed:
        left_out = _of_head(tensors, found, layers) - {found.keys[path] for path in arrays}
    problems = [line for path, line in found.wrong.items() if path not in new]
    problems += [line for key, line in found.unexpected.items() if key not in left_out]
    if not problems and not other_architecture:
        _require_stated(module, input_shape, checkpoint, found, layers)
    if problems:
        advice = _advice(module, input_shape, found, layers, tensors, checkpoint)
        words = f"the weights do not fit {type(module).__name__}{advice}:"
        raise InputError(words + _few(problems, _LONGEST - len(words)))
    arrays |= _initialised(module, input_shape, new, seed)
    return Pretrained(
        unflatten_dict({path: arrays[path] for path in found.keys}),
        tuple("/".join(layer) for layer in fresh),
        tuple(sorted(left_out)),
        found.naming,
    )


def _first_shape(input_shape: Any) -> tuple[int, ...]:
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


class _Layers(NamedTuple):
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


def _layers(module: nn.Module, input_shape: Shape | Sequence[Shape]) -> _Layers:
    """What of the module can be new. Raises InputError for a shape without the usual four axes."""
    try:
        found = overview(module, [abstract_input(module, input_shape)])
    except Exception as error:
        shape = _first_shape(input_shape)
        if len(shape) == 4:
            raise
        raise InputError(
            f"{type(module).__name__} cannot have {_axes(shape)} ({error})."
        ) from error
    targets = flatten_dict(found.variables)
    kernels = (("params", *path, "kernel") for path in found.roles)
    first = next((path for path in kernels if path in targets), ())
    return _Layers(targets, found.heads, found.attention, first)


def _axes(shape: tuple[int, ...]) -> str:
    """What is likely wrong with a shape that is not (N, H, W, C), which only some layers take."""
    return f"input_shape={shape} with {len(shape)} axes: images have four, (N, H, W, C)"


def _within(path: TreePath, layer: TreePath) -> bool:
    """Whether the array at `path`, collection first, belongs to the submodule `layer`."""
    return path[1 : 1 + len(layer)] == layer


def _of_one(path: TreePath, layers: Sequence[TreePath]) -> bool:
    """Whether the array at `path` belongs to one of the submodules `layers`."""
    return any(_within(path, layer) for layer in layers)


def _absent(found: Fit, layers: _Layers) -> list[TreePath]:
    """The attention layers of which the checkpoint has nothing."""
    own = {layer: {p for p in found.keys if _within(p, layer)} for layer in layers.attention}
    return [layer for layer, paths in own.items() if paths and paths <= found.missing.keys()]


def _of_head(tensors: Iterable[str], found: Fit, layers: _Layers) -> set[str]:
    """The keys of the checkpoint's heads."""
    kernels = (key_of(("params", *head, "kernel"), found.renames).key for head in layers.heads)
    prefixes = tuple(k.removesuffix("kernel").removesuffix("weight") for k in kernels)
    return {key for key in tensors if key.startswith(prefixes)}


def _is_rgb(found: Fit, layers: _Layers, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the file's first kernel is the module's, but for images of three channels."""
    shape = layers.targets[layers.first_kernel].shape
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
    module: nn.Module, input_shape: Shape | Sequence[Shape], paths: Sequence[TreePath], seed: int
) -> dict[TreePath, np.ndarray]:
    """New arrays for `paths`; the rest is never computed."""
    if not paths:
        return {}
    drawn = flatten_dict(initialise(module, jax.random.key(seed), input_shape, paths=paths))
    return {path: np.asarray(drawn[path]) for path in paths}


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


def _require_stated(
    module: nn.Module,
    input_shape: Shape | Sequence[Shape],
    checkpoint: Checkpoint,
    found: Fit,
    layers: _Layers,
) -> None:
    """InputError where the weights are of a network that computes something else."""
    if not isinstance(module, Backbone):
        return
    stated = checkpoint.config.get("architecture")
    if isinstance(stated, str) and stated in MODELS:
        wanted: Any = stated_model(checkpoint, num_classes=module.num_classes)
        differs = module.differs_from(wanted)
        theirs = flatten_dict(abstract_variables(wanted, input_shape)) if differs else {}
        for path, leaf in theirs.items():
            own = layers.targets.get(path)
            if not _of_one(path, layers.heads) and (own is None or own.shape != leaf.shape):
                return  # the tensors are not those of what the config states
        why = f"the checkpoint's config says {stated}, which differs in {', '.join(differs)}"
    else:
        stated = module.elsewhere.get(found.naming)
        differs = [found.naming] if stated else []
        why = f"their names are those of timm's {stated}, which computes something else"
    if differs:
        raise InputError(
            f"the weights have the shapes of this {type(module).__name__} and belong to another: "
            f"{why}; use create_model({stated!r}), or load_pretrained(..., "
            f"other_architecture=True) if you mean it."
        )


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


def _advice(
    module: nn.Module,
    input_shape: Shape | Sequence[Shape],
    found: Fit,
    layers: _Layers,
    tensors: Mapping[str, np.ndarray],
    checkpoint: Checkpoint,
) -> str:
    """What to do about it, as far as that can be told."""
    if len(shape := _first_shape(input_shape)) != 4:
        return f" for {_axes(shape)}"
    if found.damaged:
        return "; NaN and infinite numbers are no weights, so get the file again"
    if prefix := _prefix_that_fits(found, tensors):
        return f"; all of its tensors are there below {prefix!r}: pass prefix={prefix!r}"
    head = _of_head(tensors, found, layers)
    others = [path for path in found.wrong if not _of_one(path, layers.heads)]
    if found.unexpected.keys() <= head:
        absent = _absent(found, layers)
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
        if all(_of_one(path, absent) for path in others):
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
