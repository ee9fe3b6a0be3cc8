"""Which attention layer stands where in a backbone, as data."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from flax import linen as nn
from jax import Array

from flaxattn.attention.graft import Graft
from flaxattn.attention.mechanism import LayerFactory, Namings, Renames, declared, layer_of
from flaxattn.errors import InputError
from flaxattn.layers.fields import require_types


class Places(NamedTuple):
    """Where a backbone can have layers.

    Fields:
        sizes: the number of blocks in each stage.
        positions: that it has for attention, the usual one first.
        gated: the blocks, (stage, block), in which the architecture has attention of its own.
        names: of its convolutions, for `after`, where they have names.
        shareable: whether the blocks of a stage are alike enough to have one layer.
    """

    sizes: Sequence[int]
    positions: Sequence[str] = ("out", "mid")
    gated: frozenset[tuple[int, int]] = frozenset()
    names: Sequence[str] = ()
    shareable: bool = True


@dataclasses.dataclass(frozen=True)
class Placement:
    """A layer and the blocks of a backbone that have one, of their own or shared within a stage.

    Fields:
        factory: a Linen class, a classmethod that makes one, or a `functools.partial` of either.
        stages: "all", or one or more numbers of stages, from 1.
        blocks: of these stages: "all", "last", one or more indices, from 0 (layer2_0); or "gated",
            those in which the architecture has attention of its own (`InvertedResidualNet`).
        position: of an attention layer in the residual branch: "out", after the last norm before
            the add, or "mid", after the middle convolution, its norm and its activation.
        share: whether these blocks of a stage have the same layer, with its weights once in the
            backbone. A layer with a `step`, as DenseImplicit, carries its state from block to
            block.
        after: instead of stages and blocks, names of convolutions, where they have names (`VGG`).
        graft: whether the layers start as the identity, see `attention.graft.Graft`.
    """

    factory: LayerFactory
    stages: Any = "all"
    blocks: Any = "all"
    position: str = "out"
    share: bool = False
    after: Any = None
    graft: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        if isinstance(self.after, str):
            object.__setattr__(self, "after", (self.after,))
        for name in ("stages", "blocks", "after"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name != "after" or value is not None):
                value = tuple(value) if isinstance(value, Iterable) else (value,)
                object.__setattr__(self, name, value)

    @property
    def layer(self) -> type[nn.Module]:
        """The class of the layers that `factory` makes."""
        return layer_of(self.factory)

    @property
    def fields(self) -> set[str]:
        """The names of the layer's fields."""
        return {field.name for field in dataclasses.fields(self.layer)}

    def example(self) -> nn.Module:
        """One such layer by itself, to be asked what it declares."""
        return self.factory(**supplied_by_block(self.layer), parent=None)

    @property
    def carries(self) -> bool:
        """Whether the blocks' one layer carries a state from block to block."""
        return self.share and declared(self.layer, "step") is not None

    def covers(self, stage: int, block: int, stage_size: int, gated: bool = False) -> bool:
        """Whether block `block` of the `stage_size` blocks of stage `stage` has the layer.

        `gated` says whether the architecture has attention of its own there.
        """
        if self.after is not None:
            return conv_name(stage, block) in self.after
        if self.stages != "all" and stage not in self.stages:
            return False
        if self.blocks == "gated":
            return gated
        if self.blocks == "last":
            return block == stage_size - 1
        return self.blocks == "all" or block in self.blocks

    def with_defaults(self, **fields: Any) -> LayerFactory:
        """`factory` with those of `fields` that its layer has and `factory` does not set itself."""
        own = self.factory.keywords if isinstance(self.factory, functools.partial) else {}
        given = {name: fields[name] for name in fields if name in self.fields and name not in own}
        factory = functools.partial(self.factory, **given)
        if not self.graft:
            return factory
        return lambda name=None: Graft(factory(parent=None), name=name)


# What a slot of a network is given: see `place.place`.
Slot = str | Mapping[str, Any] | LayerFactory | Placement | Literal[False] | None


def conv_name(stage: int, block: int) -> str:
    """What VGG's authors call convolution `block`, from 0, of stage `stage`: conv5_3."""
    return f"conv{stage}_{block + 1}"


def namings(slots: Mapping[str, Placement | None]) -> dict[str, Renames]:
    """The renames of the layers in `slots`, held to the submodules that carry the slots' names."""
    tables: dict[str, Renames] = {}
    for name, placement in slots.items():
        known: Namings = declared(placement.example(), "namings") if placement else {}
        for source, renames in known.items():
            tables[source] = tables.get(source, ()) + renames_below(name, renames)
    return tables


def with_others(tables: Mapping[str, Renames], others: Mapping[str, Renames]) -> dict[str, Renames]:
    """`tables`, and of `others` the renames of what they do not rename, source by source."""
    merged = dict(tables)
    for source, renames in others.items():
        known = {ours for _, ours, *_ in merged.get(source, ())}
        new = tuple(rename for rename in renames if rename[1] not in known)
        merged[source] = (*merged.get(source, ()), *new)
    return merged


def renames_below(name: str, renames: Renames, foreign_name: str | None = None) -> Renames:
    """`renames` of a submodule `name`, which the source calls `foreign_name` if it is given."""
    theirs = name if foreign_name is None else foreign_name
    return tuple(
        (f"{theirs}.{foreign}".strip("."), f"{name}.{ours}", *layout)
        for foreign, ours, *layout in renames
    )


def same_shape(layer: nn.Module, x: Array, y: Array) -> Array:
    """y, what `layer` returns for x, or InputError if its shape is not x's."""
    if y.shape != x.shape:
        raise InputError(
            f"{type(layer).__name__} returns {y.shape} for a map {x.shape}: in a block use one "
            f"that keeps the shape, such as output='scaled'."
        )
    return y


def in_slot(layer: LayerFactory | nn.Module, name: str, x: Array, train: bool) -> Array:
    """What a block's layer makes of x: one of its own, or one that several blocks share."""
    made = layer if isinstance(layer, nn.Module) else layer(name=name)
    return same_shape(made, x, made(x, train))


def supplied_by_block(layer: Any) -> dict[str, Any]:
    """The fields of a layer that no placement gives."""
    return {"features": 1} if declared(layer, "role") in ("convolution", "head") else {}
