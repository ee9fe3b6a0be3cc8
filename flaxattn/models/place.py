"""From what a slot of a network is given to a checked placement."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from flaxattn.attention import ATTENTION, LISTED, create_attention, require_name
from flaxattn.attention.mechanism import declared, layer_of
from flaxattn.errors import InputError, shown, unknown
from flaxattn.models.placement import Placement, Places, Slot, supplied_by_block

# What each slot of a residual block takes.
_ROLES = {
    "attention": ("recalibrate", "context"),
    "conv": ("convolution",),
    "context": ("recalibrate", "context"),
}
# Which blocks have a slot's layer unless told otherwise.
_BLOCKS = {"attention": "all", "conv": "all", "context": "last"}


def place(slot: str, value: Slot, places: Places) -> Placement | None:
    """The placement that `value` describes for a slot of a backbone.

    Args:
        slot: "attention", "conv" or "context".
        value: None or False, for nothing; a mechanism's name; a mapping with that `name`, its
            `variant`, the fields of a `Placement` but for its factory, and the layer's own fields;
            a layer factory; or a `Placement`.
        places: where the backbone can have layers.

    Without `blocks`, attention stands in the blocks that have it by architecture, or in every block
    where none has; conv in every block, context after each stage's last one. A `Placement` stands
    where it says itself, by default in all blocks.

    Raises InputError for what is not in ATTENTION or not the layer's, and for what cannot
    be there.
    """
    if value is None or value is False:
        return None
    usual_blocks = "gated" if slot == "attention" and places.gated else _BLOCKS[slot]
    usual: dict[str, Any] = {"blocks": usual_blocks, "position": places.positions[0]}
    given: Any = {"name": value} if isinstance(value, str) else value
    if hasattr(given, "keys"):  # ml_collections.ConfigDict is not a Mapping
        given = _from_mapping(slot, dict(given), usual)
    elif not isinstance(given, Placement):
        given = Placement(given, **usual)
    _require_possible(slot, given, places)
    return given


def _from_mapping(slot: str, fields: dict[str, Any], usual: dict[str, Any]) -> Placement:
    if "name" not in fields:
        raise InputError(
            f"{slot}={shown(fields)} does not say which mechanism: add its name, such as "
            f"name='se', see `{LISTED}`."
        )
    name, variant = fields.pop("name"), fields.pop("variant", None)
    if "position" in fields and slot != "attention":
        raise InputError(f"{slot} has one position only: position=... belongs to attention.")
    for field in ("parent", "features", "strides") if slot == "conv" else ("parent",):
        if field in fields:
            raise InputError(f"{field} in the {slot} slot is for the block to give: leave it out.")
    if fields.get("after") is not None:
        usual = usual | {"blocks": "all"}
    _, *names = (field.name for field in dataclasses.fields(Placement))
    where = usual | {field: fields.pop(field) for field in names if field in fields}
    require_name(name)
    supplied = supplied_by_block(layer_of(ATTENTION[name]))
    create_attention(name, variant=variant, **{**supplied, **fields}, parent=None)  # or InputError
    factory = ATTENTION[name] if variant is None else getattr(ATTENTION[name], variant)
    return Placement(functools.partial(factory, **fields), **where)


def _name(factory: Any) -> str:
    """What ATTENTION calls the layers that `factory` makes: by its variant, else by its class."""
    layer = layer_of(factory)
    for made in (factory.func if isinstance(factory, functools.partial) else factory, layer):
        for name, known in ATTENTION.items():
            if known == made:
                return name
    return layer.__name__


def _require_possible(slot: str, placement: Placement, places: Places) -> None:
    """InputError for a layer that cannot stand where it is placed, or not as it is placed."""
    _require_role(slot, placement)
    _require_existing(slot, placement, places)
    _require_named(slot, placement, places.names)
    _require_shareable(slot, placement, places.shareable)
    _require_graftable(slot, placement, bool(places.gated))


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


def _require_existing(slot: str, placement: Placement, places: Places) -> None:
    if slot == "attention" and placement.position not in places.positions:
        raise unknown("position", placement.position, places.positions)
    for field in ("stages", "blocks", "after"):
        if getattr(placement, field) == ():
            raise InputError(f"{slot} {field}=() places nothing: use 'all' or name at least one.")
    count = len(places.sizes)
    stages = placement.stages
    if stages == "all":
        stages = tuple(range(1, count + 1))
    elif isinstance(stages, str):
        raise InputError(f"{slot} stages={stages!r}: use 'all' or a tuple of 1 to {count}.")
    for stage in stages:
        if stage not in range(1, count + 1):
            raise InputError(f"{slot} in stage {stage!r}: the backbone has stages 1 to {count}.")
    if placement.blocks == "gated" and places.gated:
        for stage in stages if placement.stages != "all" else ():
            if not any(gated == stage for gated, _ in places.gated):
                there = ", ".join(str(s) for s in sorted({gated for gated, _ in places.gated}))
                raise InputError(
                    f"{slot} in stage {stage} places nothing: without `blocks` it stands in the "
                    f"blocks that have attention by architecture, which are in stages {there}; "
                    f"use those, or blocks='all'."
                )
        return
    if placement.blocks in ("all", "last"):
        return
    if isinstance(placement.blocks, str):
        raise InputError(
            f"{slot} blocks={placement.blocks!r}: use 'all', 'last' or a tuple of indices from 0."
        )
    for stage in stages:
        size = places.sizes[stage - 1]
        for block in placement.blocks:
            if block not in range(size):
                raise InputError(
                    f"{slot} in block {block!r} of stage {stage}: that stage has blocks 0 to "
                    f"{size - 1}; name the stages meant, or blocks they all have."
                )


def _require_named(slot: str, placement: Placement, names: Sequence[str]) -> None:
    if placement.after is None:
        return
    if not names:
        raise InputError(
            f"{slot} after={placement.after}: only VGG's convolutions go by such names; use "
            f"stages=... and blocks=... ."
        )
    if (placement.stages, placement.blocks) != ("all", "all"):
        raise InputError(
            f"{slot} after={placement.after} with stages or blocks: name the convolutions, or "
            f"their stages and blocks."
        )
    for name in placement.after:
        if name not in names:
            raise unknown("convolution", name, names)


def _require_shareable(slot: str, placement: Placement, shareable: bool) -> None:
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
