"""Which torch tensor a Flax array is, by name, and how torch lays it out.

Submodules carry the reference's names, so one rule serves all: the parts of the path join with
dots, trailing indices leave their parents (layer1_0 -> layer1.0, blocks_2_0 -> blocks.2.0), and the
leaf takes torch's word (kernel and scale -> weight, mean -> running_mean, var -> running_var).

Where a source has another name for a thing, the thing's class says so in `namings`: renames
(foreign, ours) of dotted parts of a path, by source. A rename holds wherever its parts occur, the
longest first; one that ends at the array itself gives the whole rest of the key. A third element is
the source's layout, where the general rule (see `convert`) does not find it:

    "linear"    a matrix (O, I), nn.Linear's, where we have a 1x1 convolution, or (O, I * H * W)
                where ours covers a whole map
    "matrix"    a matrix (I, O), Theano's and TensorFlow's, for the same
    "stacked"   kernels (K, O, I, *spatial) where ours are (K, *spatial, I, O)
    "flat"      the same kernels as a matrix (K, O * I * ...)
    "1n11"      a vector with axes of one around it, here (1, n, 1, 1); likewise "n11" and others,
                and "n1n" of a matrix
    "derived"   a tensor that follows from the layer's fields: we have no such array (ours="")
    "elsewhere" arrays that the source keeps in another module: it has no such tensor (foreign="")
"""

import re
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from flaxattn.attention.mechanism import Namings, Renames, declared
from flaxattn.errors import InputError, unknown

Naming = str | Renames  # a source's name in `module.namings`, or renames themselves

OWN = "own"  # torch's keys without renames
FLAX = "flax"  # the paths of Flax arrays, joined by slashes
ELSEWHERE = "elsewhere"  # the layout of what a source has no tensor for

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class TorchName(NamedTuple):
    """A torch tensor's key, and the layout that its rename states, "" if none does."""

    key: str
    layout: str


def torch_name(path: Sequence[str], renames: Renames) -> TorchName:
    """The torch name of the array at `path` below its collection, such as ("fc1", "kernel")."""
    left = list(path)
    longest_first = sorted((r for r in renames if r[1]), key=lambda rename: -rename[1].count("."))
    parts: list[str] = []
    layout = ""
    while left:
        for foreign, ours, *layouts in longest_first:
            count = ours.count(".") + 1
            if left[:count] == ours.split("."):
                parts += [foreign] if foreign else []
                left = left[count:]
                layout = layouts[0] if layouts else ""
                break
        else:
            part = left.pop(0)
            if left:
                parts.append(re.sub(r"_(\d+)(?=(_\d+)*$)", r".\1", part))
                layout = ""
            else:
                parts.append(_LEAVES.get(part, part))
    return TorchName(".".join(parts), layout)


def is_derived(key: str, renames: Renames) -> bool:
    """Whether the tensor called `key` follows from the layer's fields."""
    return any(
        layout == ["derived"] and f".{key}".endswith(f".{foreign}")
        for foreign, _, *layout in renames
    )


def _are_renames(naming: Any) -> bool:
    return isinstance(naming, Sequence) and all(
        isinstance(rename, tuple | list)
        and len(rename) in (2, 3)
        and all(isinstance(part, str) for part in rename)
        for rename in naming
    )


def tables(module: nn.Module) -> Namings:
    """The renames that `module` knows, by source."""
    return declared(module, "namings")


def table(naming: Naming | None, module: nn.Module | None) -> Renames:
    """The renames of `naming`: what `module` knows under a name, none for our own."""
    if naming is None or naming == OWN:
        return ()
    if not isinstance(naming, str):
        if not _are_renames(naming):
            raise InputError(
                f"naming={reprlib.repr(naming)} must be a name, or renames: tuples (foreign, ours) "
                f"or (foreign, ours, layout) of strings."
            )
        return naming
    if module is None:
        raise InputError(
            f"naming={naming!r} is a name that the module of these variables knows: pass "
            f"module=..., or the renames themselves."
        )
    if naming not in tables(module):
        raise unknown(f"naming of {type(module).__name__}", naming, tables(module))
    return tables(module)[naming]
