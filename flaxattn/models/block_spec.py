"""Tables of blocks, of which `inverted_residual_net` makes networks, and their scaling."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax import Array

from flaxattn.attention.mechanism import LayerFactory
from flaxattn.errors import InputError, shown
from flaxattn.layers.fields import require_types
from flaxattn.layers.widths import make_divisible


class BlockSpec(NamedTuple):
    """A row of a network's table: blocks of one kind, one after the other.

    Fields:
        kind: "inverted", 1x1 that expands, depthwise and 1x1 that projects (Sandler et al. 2018);
            "separable", the same without the first 1x1 (Howard et al. 2017); "edge", one dense
            convolution in the place of the first two (Gupta and Tan 2019, "fused MBConv"); or
            "conv", one dense convolution.
        features: channels of the blocks' output.
        kernel_size: of the depthwise or dense convolution. A tuple splits the channels into as many
            parts, each with its own size (MixNet).
        strides: of the first block; only a stage's first row may have any.
        expansion: channels inside the block to channels of its input.
        repeats: how many blocks.
        se: width of the block's squeeze-and-excitation, as a share of channels; 0 for none.
        activation: the network's, if None.
        skip: whether the input is added where the shapes allow it.
        expand_size, project_size: kernel sizes of the two 1x1, or tuples of them.
        project_activation: whether an activation follows the projection.
        group_size: channels to a group of an edge block's dense convolution; None for one group.
        expand_from: channels that `expansion` multiplies instead of the input's.
        experts: of each convolution (CondConv), routed once for the block; 0 for none.
    """

    kind: str
    features: int
    kernel_size: int | tuple[int, ...] = 3
    strides: int = 1
    expansion: float = 1.0
    repeats: int = 1
    se: float = 0.0
    activation: str | None = None
    skip: bool = True
    expand_size: int | tuple[int, ...] = 1
    project_size: int | tuple[int, ...] = 1
    project_activation: bool = False
    group_size: int | None = None
    expand_from: int | None = None
    experts: int = 0

    def inner_features(self, features: int) -> int:
        """Channels inside a block whose input has `features`."""
        match self.kind:
            case "conv":
                return self.features
            case "separable":
                return features
        return make_divisible((self.expand_from or features) * self.expansion, 8)


Stages = tuple[tuple[BlockSpec, ...], ...]
# Makes a block's own attention from its row, the channels inside it, and its activation.
Gate = Callable[[BlockSpec, int, Callable[[Array], Array]], LayerFactory]

inverted = functools.partial(BlockSpec, "inverted")
separable = functools.partial(BlockSpec, "separable")
edge = functools.partial(BlockSpec, "edge")
conv = functools.partial(BlockSpec, "conv", skip=False)


def scale_width(
    stages: Stages, width: float, *, divisor: int = 8, round_limit: float = 0.9
) -> Stages:
    """The table with `width` times as many channels, rounded to multiples of `divisor`."""
    scaled = functools.partial(_scaled, width=width, divisor=divisor, round_limit=round_limit)
    return tuple(
        tuple(
            spec._replace(
                features=scaled(spec.features),
                expand_from=spec.expand_from and scaled(spec.expand_from),
            )
            for spec in stage
        )
        for stage in stages
    )


def _scaled(features: int, *, width: float, divisor: int, round_limit: float) -> int:
    return make_divisible(features * width, divisor, round_limit=round_limit)


def scale_depth(
    stages: Stages,
    depth: float | Sequence[float],
    *,
    rounding: Callable[[float], int] = math.ceil,
    fix_ends: bool = False,
) -> Stages:
    """The table with `depth` times as many blocks in each stage, as timm scales it.

    Args:
        stages: the table.
        depth: the factor, or one for each stage.
        rounding: of a stage's number of blocks, which its rows then share in proportion: the last
            one first, so that the first block, which has the strides, is least often repeated.
        fix_ends: whether the first and the last stage stay as they are.
    """
    factors = list(depth) if isinstance(depth, Sequence) else [depth] * len(stages)
    if fix_ends:
        factors[0] = factors[-1] = 1.0
    return tuple(
        _deepen(stage, factor, rounding) for stage, factor in zip(stages, factors, strict=True)
    )


def _deepen(
    stage: tuple[BlockSpec, ...], factor: float, rounding: Callable[[float], int]
) -> tuple[BlockSpec, ...]:
    left = sum(spec.repeats for spec in stage)
    scaled_left = max(1, rounding(left * factor))
    rows = []
    for spec in reversed(stage):
        repeats = max(1, round(spec.repeats / left * scaled_left))
        rows.append(spec._replace(repeats=repeats))
        left -= spec.repeats
        scaled_left -= repeats
    return tuple(reversed(rows))


def expand(stages: Stages) -> Stages:
    """A row for each block: only the first of a stage has strides.

    Raises InputError for strides in another row than a stage's first.
    """

    def blocks(stage: tuple[BlockSpec, ...]) -> Iterator[BlockSpec]:
        for spec in stage[1:]:
            if spec.strides != 1:
                raise InputError(
                    f"{spec} has strides and is not the first row of its stage: begin a stage "
                    f"with it."
                )
        for index, spec in enumerate(s for s in stage for _ in range(s.repeats)):
            yield spec._replace(repeats=1, strides=1 if index else spec.strides)

    return tuple(tuple(blocks(stage)) for stage in stages)


def read_table(table: Any) -> Stages:
    """A table from its values, which in a config may be lists.

    Raises InputError for what is no table, and for values that a row cannot have.
    """
    if not _nested(table) or not all(map(_nested, table)):
        raise InputError(f"stages={shown(table)} must be a sequence of rows for each stage.")
    return tuple(tuple(map(_row, stage)) for stage in table)


def _nested(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | BlockSpec)


def _row(values: Any) -> BlockSpec:
    least, most = len(BlockSpec._fields) - len(BlockSpec._field_defaults), len(BlockSpec._fields)
    if not isinstance(values, list | tuple) or not least <= len(values) <= most:
        raise InputError(
            f"stages has the row {shown(values)}: give a BlockSpec, or {least} to {most} of its "
            f"values in order."
        )
    hashable: list[Any] = [tuple(v) if isinstance(v, list) else v for v in values]
    spec = BlockSpec(*hashable)
    require_types(spec)
    return spec
