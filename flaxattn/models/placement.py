"""Which attention layer stands where in a backbone, as data."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from flax import linen as nn
from jax import Array

from flaxattn.attention import ATTENTION, create_attention
from flaxattn.attention.graft import Graft
from flaxattn.attention.mechanism import LayerFactory, declared
from flaxattn.errors import InputError, unknown

# What each slot of a residual block takes, and which blocks have it unless told otherwise.
_ROLES = {
    "attention": ("recalibrate", "context"),
    "conv": ("convolution",),
    "context": ("recalibrate", "context"),
}
_BLOCKS = {"attention": "all", "conv": "all", "context": "last"}


@dataclasses.dataclass(frozen=True)
class Placement:
    """A layer and the blocks of a backbone that have one, of their own or shared within a stage.

    Fields:
        factory: a Linen class, a classmethod that makes one, or a `functools.partial` of either.
        stages: "all" or the stages' numbers, from 1; a single one may stand for itself.
        blocks: of these stages: "all", "last", or the blocks' indices, from 0 (layer2_0); likewise.
            "gated" are those in which the architecture has attention of its own, for a backbone
            that has such blocks (`InvertedResidualNet`).
        after: instead of stages and blocks, names of convolutions, where they have names (`VGG`).
        position: of an attention layer in the residual branch: "out", after the last norm before
            the add, or "mid", after the middle convolution, its norm and its activation.
        share: whether these blocks of a stage have one and the same layer, with its weights once in
            the backbone. One that carries a state from map to map, by a `step` such as that of
            DenseImplicit, carries it from block to block.
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
        if isinstance(self.after, str):
            object.__setattr__(self, "after", (self.after,))
        for name in ("stages", "blocks", "after"):
            value = getattr(self, name)
            if name == "after" and value is None:
                continue
            if not isinstance(value, Iterable):
                object.__setattr__(self, name, (value,))
            elif not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))

    @property
    def layer(self) -> type[nn.Module]:
        """The class of the layers that `factory` makes."""
        return _layer(self.factory)

    @property
    def fields(self) -> set[str]:
        """The names of the layer's fields."""
        return {field.name for field in dataclasses.fields(self.layer)}

    def example(self) -> nn.Module:
        """One such layer by itself, to be asked what it declares."""
        return self.factory(**_supplied_by_block(self.layer), parent=None)

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
        names = self.fields - _fixed(self.factory)
        factory = functools.partial(
            self.factory, **{name: value for name, value in fields.items() if name in names}
        )
        if not self.graft:
            return factory
        return lambda name=None: Graft(factory(parent=None), name=name)


# What a slot of a network is given: see `place`.
Slot = str | Mapping[str, Any] | LayerFactory | Placement | Literal[False] | None


def conv_name(stage: int, block: int) -> str:
    """What VGG's authors call convolution `block`, from 0, of stage `stage`: conv5_3."""
    return f"conv{stage}_{block + 1}"


def place(
    slot: str,
    value: Any,
    stage_sizes: Sequence[int],
    *,
    positions: Sequence[str] = ("out", "mid"),
    gated: bool = False,
    named: bool = False,
    shareable: bool = True,
) -> Placement | None:
    """The placement that `value` describes for a slot of a backbone.

    Args:
        slot: "attention", "conv" or "context".
        value: None or False, for nothing; a mechanism's name; a mapping with that `name`, its
            `variant`, the `stages`, `blocks`, `after`, `position`, `share` and `graft` of a
            `Placement`, and the layer's own fields; a layer factory; or a `Placement`.
        stage_sizes: the number of blocks in each stage.
        positions: that the backbone has for attention, the usual one first.
        gated: whether the architecture has attention of its own in some blocks.
        named: whether its blocks are convolutions with names, for `after`.
        shareable: whether the blocks of a stage are alike enough to have one layer.

    Without `blocks`, attention stands in the blocks that have it by architecture, or in every block
    where none has; conv in every block, context after each stage's last one. A `Placement` stands
    where it says itself, by default in all blocks.

    Raises InputError for an unknown mechanism, variant or field, a layer whose role the slot does
    not take, an instance (its weights would be shared between blocks), stages, blocks, positions or
    convolutions that do not exist or are none, and `share` where it cannot be: in the conv slot,
    whose layers change their maps, and with a layer that carries a state, except at position "out";
    and `graft` with either of these, or in the place of the architecture's own attention.
    """
    if value is None or value is False:
        return None
    usual_blocks = "gated" if slot == "attention" and gated else _BLOCKS[slot]
    if isinstance(value, str):
        value = {"name": value}
    if hasattr(value, "keys"):  # ml_collections.ConfigDict is no Mapping
        value = _from_mapping(slot, dict(value), usual_blocks, positions[0])
    elif not isinstance(value, Placement):
        value = Placement(value, blocks=usual_blocks, position=positions[0])
    _require_role(slot, value)
    _require_existing(slot, value, stage_sizes, positions, gated)
    _require_named(slot, value, stage_sizes, named)
    _require_shareable(slot, value, shareable)
    _require_graftable(slot, value, gated)
    return value


def namings(slots: Mapping[str, Placement | None]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The renames of the layers in `slots`, held to the submodules that carry the slots' names."""
    tables: dict[str, tuple[tuple[str, ...], ...]] = {}
    for name, placement in slots.items():
        if placement is not None:
            for source, renames in declared(placement.example(), "namings").items():
                tables[source] = tables.get(source, ()) + tuple(
                    (f"{name}.{foreign}".rstrip("."), f"{name}.{ours}", *kind)
                    for foreign, ours, *kind in renames
                )
    return tables


def same_shape(layer: nn.Module, x: Array, y: Array) -> Array:
    """y, what `layer` answers for x, or InputError if its shape is not x's."""
    if y.shape != x.shape:
        raise InputError(
            f"{type(layer).__name__} answers {y.shape} for a map {x.shape}: in a block use one "
            f"that keeps the shape, such as output='scaled'."
        )
    return y


def in_slot(layer: LayerFactory | nn.Module, name: str, x: Array, train: bool) -> Array:
    """What a block's layer makes of x: one of its own, or one that several blocks share."""
    made = layer if isinstance(layer, nn.Module) else layer(name=name)
    return same_shape(made, x, made(x, train))


def _from_mapping(
    slot: str, fields: dict[str, Any], usual_blocks: str, usual_position: str
) -> Placement:
    if "name" not in fields:
        raise InputError(
            f"{slot}={fields!r} does not say which mechanism: add name=..., one of "
            f"{', '.join(sorted(ATTENTION))}."
        )
    name, variant = fields.pop("name"), fields.pop("variant", None)
    if "position" in fields and slot != "attention":
        raise InputError(f"{slot} has one position only: position=... belongs to attention.")
    for field in ("parent", "features", "strides") if slot == "conv" else ("parent",):
        if field in fields:
            raise InputError(f"{field} in the {slot} slot is for the block to give: leave it out.")
    stages = fields.pop("stages", "all")
    after = fields.pop("after", None)
    blocks = fields.pop("blocks", usual_blocks if after is None else "all")
    position, share = fields.pop("position", usual_position), fields.pop("share", False)
    grafted = fields.pop("graft", False)
    supplied = _supplied_by_block(_layer(ATTENTION.get(name)))
    create_attention(name, variant=variant, **{**supplied, **fields}, parent=None)  # or InputError
    factory = ATTENTION[name] if variant is None else getattr(ATTENTION[name], variant)
    factory = functools.partial(factory, **fields)
    return Placement(factory, stages, blocks, position, share, after, grafted)


def _supplied_by_block(layer: Any) -> dict[str, Any]:
    """The fields of a layer that no placement gives."""
    return {"features": 1} if declared(layer, "role") in ("convolution", "head") else {}


def _layer(factory: Any) -> type[nn.Module]:
    """The class behind partials and classmethods."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return getattr(factory, "__self__", factory)


def _name(factory: Any) -> str:
    """What ATTENTION calls the layers that `factory` makes: by its variant, else by its class."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    for made in (factory, _layer(factory)):
        for name, known in ATTENTION.items():
            if known == made:
                return name
    return _layer(factory).__name__


def _fixed(factory: Any) -> set[str]:
    """The fields that partials have set."""
    names: set[str] = set()
    while isinstance(factory, functools.partial):
        names |= factory.keywords.keys()
        factory = factory.func
    return names


def _require_role(slot: str, placement: Placement) -> None:
    layer = placement.layer
    if isinstance(layer, nn.Module):
        raise InputError(
            f"{slot}={type(layer).__name__}(...) is one layer whose weights all blocks would "
            f"share: pass the class, or functools.partial({type(layer).__name__}, ...)."
        )
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise InputError(
            f"{slot}={placement.factory!r} makes no layer: pass a mechanism's name, a dict with "
            f"its name, a Linen class, or a functools.partial of one."
        )
    role = declared(layer, "role")
    if role in _ROLES[slot]:
        return
    name = _name(placement.factory)
    if role == "convolution":
        raise InputError(f"{name} replaces a convolution: pass conv=dict(name={name!r}).")
    if role == "head":
        raise InputError(
            f"{name} is a head and changes the number of channels: apply it to the backbone's "
            f"features instead of placing it in a block."
        )
    if role is None:
        raise InputError(
            f"{name} does not say its role: give the class role = one of {', '.join(_ROLES[slot])}."
        )
    raise InputError(
        f"{name} keeps its input's shape and replaces no convolution: pass "
        f"attention=dict(name={name!r})."
    )


def _require_existing(
    slot: str,
    placement: Placement,
    stage_sizes: Sequence[int],
    positions: Sequence[str],
    gated: bool,
) -> None:
    if slot == "attention" and placement.position not in positions:
        raise unknown("position", placement.position, positions)
    for field in ("stages", "blocks", "after"):
        if getattr(placement, field) == ():
            raise InputError(f"{slot} {field}=() places nothing: use 'all' or name at least one.")
    count = len(stage_sizes)
    stages = placement.stages
    if stages == "all":
        stages = tuple(range(1, count + 1))
    elif isinstance(stages, str):
        raise InputError(f"{slot} stages={stages!r}: use 'all' or a tuple of 1 to {count}.")
    for stage in stages:
        if stage not in range(1, count + 1):
            raise InputError(f"{slot} in stage {stage!r}: the backbone has stages 1 to {count}.")
    if placement.blocks in ("all", "last"):
        return
    if placement.blocks == "gated" and gated:
        return
    if isinstance(placement.blocks, str):
        raise InputError(
            f"{slot} blocks={placement.blocks!r}: use 'all', 'last' or a tuple of indices from 0."
        )
    for stage in stages:
        for block in placement.blocks:
            if block not in range(stage_sizes[stage - 1]):
                raise InputError(
                    f"{slot} in block {block!r} of stage {stage}: that stage has blocks 0 to "
                    f"{stage_sizes[stage - 1] - 1}; name the stages meant, or blocks they all have."
                )


def _require_named(
    slot: str, placement: Placement, stage_sizes: Sequence[int], named: bool
) -> None:
    if placement.after is None:
        return
    if not named:
        raise InputError(
            f"{slot} after={placement.after}: only VGG's convolutions go by such names; use "
            f"stages=... and blocks=... ."
        )
    if (placement.stages, placement.blocks) != ("all", "all"):
        raise InputError(
            f"{slot} after={placement.after} with stages or blocks: name the convolutions, or "
            f"their stages and blocks."
        )
    sizes = enumerate(stage_sizes, start=1)
    names = [conv_name(stage, block) for stage, size in sizes for block in range(size)]
    for name in placement.after:
        if name not in names:
            raise unknown("convolution", name, names)


def _require_shareable(slot: str, placement: Placement, shareable: bool) -> None:
    if not isinstance(placement.share, bool):
        raise InputError(f"{slot} share={placement.share!r}: use True or False.")
    if placement.share and not shareable:
        raise InputError(
            f"{slot} share=True: the blocks of a stage differ in width here; leave it out."
        )
    if placement.share and slot == "conv":
        raise InputError(
            "share=True in the conv slot: a stage's first convolution has other channels than the "
            "rest; leave it out."
        )
    if placement.carries and (slot, placement.position) != ("attention", "out"):
        raise InputError(
            f"share=True in the {slot} slot, position {placement.position!r}: "
            f"{placement.layer.__name__} carries a state from block to block, which goes through "
            f"the attention slot at position 'out' only."
        )


def _require_graftable(slot: str, placement: Placement, gated: bool) -> None:
    if not isinstance(placement.graft, bool):
        raise InputError(f"{slot} graft={placement.graft!r}: use True or False.")
    if not placement.graft:
        return
    if slot == "conv":
        raise InputError(
            "graft=True in the conv slot: what replaces a convolution takes over its kernel, from "
            "variables: leave it out, and call flaxattn.graft(model, variables, conv=...)."
        )
    if placement.carries:
        raise InputError(
            f"graft=True with share=True: {placement.layer.__name__} carries a state from block to "
            f"block; leave one of them out."
        )
    if slot == "attention" and gated:
        raise InputError(
            "graft=True in the attention slot of an architecture that has attention of its own "
            "there: its weights would be lost; use context=... ."
        )
