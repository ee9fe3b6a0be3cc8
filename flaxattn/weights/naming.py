"""Which torch tensor a Flax array is, by name.

Submodules carry the reference's names, so one rule serves all: parts of the path join with dots, a
trailing index leaves its parent (layer1_0 -> layer1.0), and the leaf takes torch's word (kernel and
scale -> weight, mean -> running_mean, var -> running_var).

Where a source names a thing otherwise, the class of that thing says so in `namings`, a mapping from
the source's name to renames (foreign, ours) of dotted prefixes; a third element "linear" says that
the source keeps as a matrix (nn.Linear) what is a 1x1 convolution here. A rename holds wherever its
parts occur in a path, the longest first.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flax import linen as nn

from flaxattn.errors import InputError, unknown

Table = Sequence[tuple[str, ...]]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class TorchName(NamedTuple):
    """A torch tensor's key, and whether it is a matrix that we keep as a 1x1 convolution."""

    key: str
    linear: bool


def torch_name(path: Sequence[str], table: Table) -> TorchName:
    """The torch name of the array at `path` below its collection, such as ("fc1", "kernel")."""
    *modules, leaf = path
    renames = sorted(table, key=lambda rename: -len(rename[1].split(".")))
    parts: list[str] = []
    linear = False
    while modules:
        for foreign, ours, *kind in renames:
            if modules[: len(ours.split("."))] == ours.split("."):
                parts += [foreign] if foreign else []
                modules = modules[len(ours.split(".")) :]
                linear = kind == ["linear"]
                break
        else:
            parts.append(re.sub(r"_(\d+)$", r".\1", modules.pop(0)))
            linear = False
    return TorchName(".".join([*parts, _LEAVES.get(leaf, leaf)]), linear)


def tables(module: nn.Module) -> Mapping[str, Table]:
    """The rename tables that `module` knows, by source name."""
    return getattr(module, "namings", {})


def table(naming: str | Table | None, module: nn.Module | None) -> Table:
    """The renames of `naming`: none for None, a table as it is, a name as `module` knows it."""
    if naming is None:
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
