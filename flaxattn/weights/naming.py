"""Which torch tensor a Flax array is, by name, and how torch lays it out.

Submodules carry the reference's names, so one rule serves all: parts of the path join with dots,
trailing indices leave their parents (layer1_0 -> layer1.0, blocks_2_0 -> blocks.2.0), and the leaf
takes torch's word (kernel and scale -> weight, mean -> running_mean, var -> running_var).

Where a source names a thing otherwise, the class of that thing says so in `namings`, a mapping from
the source's name to renames (foreign, ours) of dotted parts of a path. A rename holds wherever its
parts occur, the longest first; one that ends at the array itself gives the whole rest of the key.
A third element is the source's layout, where the general rule (see `convert`) does not find it:

    "linear"    a matrix (O, I), nn.Linear's, of what is a 1x1 convolution here, or (O, I * H * W)
                of what is one of a whole map
    "matrix"    a matrix (I, O), Theano's and TensorFlow's, of the same
    "stacked"   kernels (K, O, I, *spatial) of what is (K, *spatial, I, O) here
    "flat"      the same kernels as a matrix (K, O * I * ...)
    "1n11"      a vector with axes of one around it, here (1, n, 1, 1); likewise "n11" and others,
                and "n1n" of a matrix
    "derived"   a tensor that follows from the layer's fields: no array of ours, left out (ours="")
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flax import linen as nn

from flaxattn.attention.mechanism import declared
from flaxattn.errors import InputError, unknown

Table = Sequence[tuple[str, ...]]
Naming = str | Table  # a source's name in `module.namings`, or its table

# Names of namings that are no table: ours for torch's keys, and the paths of Flax arrays.
OWN = "own"
FLAX = "flax"

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class TorchName(NamedTuple):
    """A torch tensor's key, and the layout that its rename states, or ""."""

    key: str
    layout: str


def torch_name(path: Sequence[str], table: Table) -> TorchName:
    """The torch name of the array at `path` below its collection, such as ("fc1", "kernel")."""
    left = list(path)
    renames = sorted((r for r in table if r[1]), key=lambda rename: -len(rename[1].split(".")))
    parts: list[str] = []
    layout = ""
    while left:
        for foreign, ours, *layouts in renames:
            if left[: ours.count(".") + 1] == ours.split("."):
                parts += [foreign] if foreign else []
                left = left[ours.count(".") + 1 :]
                layout = layouts[0] if layouts else ""
                break
        else:
            if len(left) > 1:
                parts.append(re.sub(r"_(\d+)(?=(_\d+)*$)", r".\1", left.pop(0)))
                layout = ""
            else:
                leaf = left.pop()
                parts.append(_LEAVES.get(leaf, leaf))
    return TorchName(".".join(parts), layout)


def is_derived(key: str, table: Table) -> bool:
    """Whether `table` says that the tensor called `key` follows from the layer's fields."""
    return any(
        rename[2:] == ("derived",) and f".{key}".endswith(f".{rename[0]}") for rename in table
    )


def tables(module: nn.Module) -> Mapping[str, Table]:
    """The rename tables that `module` knows, by source name."""
    return declared(module, "namings")


def table(naming: str | Table | None, module: nn.Module | None) -> Table:
    """The renames of `naming`: a table as it is, a name as `module` knows it, none for our own."""
    if naming is None or naming == OWN:
        return ()
    if not isinstance(naming, str):
        return naming
    if module is None:
        raise InputError(
            f"naming={naming!r} is a table of the module that made these variables: pass "
            f"module=..., or the table itself."
        )
    if naming not in tables(module):
        raise unknown(f"naming of {type(module).__name__}", naming, tables(module))
    return tables(module)[naming]
