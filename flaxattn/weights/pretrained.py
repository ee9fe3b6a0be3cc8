"""A module's variables from a checkpoint: all of them, or all but what the caller lets be new."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn.errors import InputError, unknown
from flaxattn.layers.abstract_variables import Shape, abstract_variables
from flaxattn.layers.initialise import initialise
from flaxattn.models import MODELS
from flaxattn.models.backbone import Backbone
from flaxattn.weights.convert import TreePath, Variables, fit
from flaxattn.weights.kinds import stated_model
from flaxattn.weights.layers import (
    Attempt,
    absent,
    axes_of,
    first_shape,
    layers_of,
    of_head,
    of_one,
    within,
)
from flaxattn.weights.misfit import misfit
from flaxattn.weights.naming import FLAX, Naming
from flaxattn.weights.opened import Source, opened

HEAD, ATTENTION = "head", "attention"


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
    shape = first_shape(input_shape)
    if isinstance(module, Backbone):
        if len(shape) != 4:
            raise InputError(f"{type(module).__name__} cannot have {axes_of(shape)}.")
        batch, channels, *size = shape
        if channels in (1, 3) and min(size) > 4:
            raise InputError(
                f"input_shape={shape} has its channels first: give (N, H, W, C), "
                f"{(batch, *size, channels)}."
            )
    if grey and shape[-1] != 1:
        raise InputError(f"grey=True is for images with one channel: {shape} has more.")
    checkpoint, tensors = opened(source, prefix=prefix, entry=entry)
    layers = layers_of(module, input_shape)
    found = fit(module, layers.targets, tensors, naming)
    if grey and layers.first_kernel in found.misshapen:
        key = found.keys[layers.first_kernel]
        tensors[key] = _summed(tensors[key], -2 if found.naming == FLAX else 1)
        found = fit(module, layers.targets, tensors, naming)

    fresh = []
    if HEAD in allowed:
        fresh += [h for h in layers.heads if any(within(path, h) for path in found.wrong)]
    if ATTENTION in allowed:
        fresh += absent(found, layers)
    new = [path for path in found.keys if of_one(path, fresh)]
    arrays = {path: array for path, array in found.filled.items() if path not in new}
    left_out: set[str] = set()
    if HEAD in allowed:
        left_out = of_head(tensors, found, layers) - {found.keys[path] for path in arrays}
    problems = [line for path, line in found.wrong.items() if path not in new]
    problems += [line for key, line in found.unexpected.items() if key not in left_out]
    attempt = Attempt(module, input_shape, layers, checkpoint, tensors, found)
    if not problems and not other_architecture:
        _require_stated(attempt)
    if problems:
        raise misfit(attempt, problems)
    arrays |= _initialised(module, input_shape, new, seed)
    return Pretrained(
        unflatten_dict({path: arrays[path] for path in found.keys}),
        tuple("/".join(layer) for layer in fresh),
        tuple(sorted(left_out)),
        found.naming,
    )


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


def _require_stated(attempt: Attempt) -> None:
    """InputError where the weights are of a network that computes something else."""
    module, input_shape, layers, checkpoint, _, found = attempt
    if not isinstance(module, Backbone):
        return
    stated = checkpoint.config.get("architecture")
    if isinstance(stated, str) and stated in MODELS:
        wanted: Any = stated_model(checkpoint, num_classes=module.num_classes)
        differs = module.differs_from(wanted)
        theirs = flatten_dict(abstract_variables(wanted, input_shape)) if differs else {}
        for path, leaf in theirs.items():
            own = layers.targets.get(path)
            if not of_one(path, layers.heads) and (own is None or own.shape != leaf.shape):
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
