"""What networks of residual blocks have in common: steps of their stages, placement, depth."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import LayerFactory, Renames
from flaxattn.errors import InputError, require_least, require_rate
from flaxattn.layers.fields import require_types
from flaxattn.models.backbone import Backbone
from flaxattn.models.calls import reading
from flaxattn.models.placement import Placement, Slot, namings


class Steps(NamedTuple):
    """How the middle convolutions of a stage step over their maps.

    Fields:
        strides: of the first block.
        first_dilation, dilation: of the first block, and of the others.
    """

    strides: int
    first_dilation: int
    dilation: int


class ResidualBackbone(Backbone, kw_only=True):
    """A stem, and stages of residual blocks.

    Fields, beside those of `Backbone`:
        drop_path: how likely the last block's residual branch is left out of a sample in train
            mode; from block to block it grows linearly from 0 (arXiv:1603.09382).
        context: layers after the add, named `context`, in any form that `place` takes.
        output_stride: 32, 16 or 8: from there on convolutions are dilated instead of strided, for
            segmentation. The parameters stay the same.
        dilate_first: whether the first block of a dilated stage has the stage's own dilation, as in
            semseg and in torchvision's MobileNetV3; without, it has that of the stage before, as in
            torchvision's other networks and in timm's.
        multi_grid: the last stage's dilations, block by block and over again, as multiples of its
            own, such as (1, 2, 4) (DeepLabV3, arXiv:1706.05587); None for its own alone.
    """

    drop_path: float = 0.0
    context: Slot = None
    output_stride: int = 32
    dilate_first: bool = False
    multi_grid: tuple[int, ...] | None = None

    slots: ClassVar[tuple[str, ...]] = ("attention", "context")
    free_fields: ClassVar[frozenset[str]] = Backbone.free_fields | {
        "context",
        "dilate_first",
        "drop_path",
        "multi_grid",
        "output_stride",
    }
    # What a block's attention is called.
    attention_name: ClassVar[str] = "se"

    def __post_init__(self) -> None:
        require_types(self)
        require_rate("drop_path", self.drop_path)
        if self.output_stride not in (8, 16, 32):
            raise InputError(f"output_stride={self.output_stride!r}: use 8, 16 or 32.")
        if self.multi_grid is not None:
            self.multi_grid = tuple(self.multi_grid)
            for factor in self.multi_grid:
                require_least("multi_grid", factor, 1)
        super().__post_init__()

    @property
    def levels(self) -> list[tuple[int, int]]:
        """The channels and the strides of the stem, and of each stage, undilated."""
        raise NotImplementedError

    @property
    def steps(self) -> list[Steps]:
        """The steps of the stem and of each stage, of which none exceeds the output's stride."""
        steps: list[Steps] = []
        reached = dilation = 1
        for _, strides in self.levels:
            before = dilation
            if reached * strides > self.output_stride:
                dilation, strides = dilation * strides, 1
            reached *= strides
            steps.append(Steps(strides, before, dilation))
        return steps

    @property
    def _ends(self) -> list[int]:
        """The levels after which there are strides, and the last."""
        following = [*(strides for _, strides in self.levels[1:]), 2]
        return [level for level, strides in enumerate(following) if strides > 1]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `features`."""
        return tuple(self.levels[level][0] for level in self._ends)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the image to one of each map of `features`, along either axis."""
        strides = [*itertools.accumulate((step.strides for step in self.steps), operator.mul)]
        return tuple(strides[level] for level in self._ends)

    def stage_name(self, stage: int) -> str:
        """The name of stage `stage`, from 1, to which a block's number is added."""
        raise NotImplementedError

    @property
    def last_stage(self) -> list[str]:
        stage = len(self.sizes)
        return [f"{self.stage_name(stage)}_{block}" for block in range(self.sizes[-1])]

    def make_block(self, stage: int, block: int) -> nn.Module:
        """Block `block`, from 0, of stage `stage`, from 1."""
        raise NotImplementedError

    def add_stages(self) -> None:
        """Makes, in `setup`, the blocks."""
        for stage, size in enumerate(self.sizes, start=1):
            name = self.stage_name(stage)
            for layer, placement in self._named().items():
                if placement and placement.share:
                    setattr(self, f"{name}_{layer}", placement.with_defaults(**self.dtypes)())
            setattr(self, name, [self.make_block(stage, block) for block in range(size)])

    def _named(self) -> dict[str, Placement | None]:
        """The placements, by what their layers are called in a block, or beside a stage's."""
        return {
            self.attention_name: self.placement("attention"),
            "context": self.placement("context"),
        }

    def slot_namings(self, **middle: Placement | None) -> dict[str, Renames]:
        """The renames of the layers in the slots, and of `middle` by their names in a block."""
        attention, context = self._named().items()
        slots = dict([attention, *middle.items(), context])
        for name, placement in self._named().items():
            if placement and placement.share:
                del slots[name]
                stages = range(1, len(self.sizes) + 1)
                slots |= {f"{self.stage_name(stage)}_{name}": placement for stage in stages}
        return namings(slots)

    def index(self, stage: int, block: int) -> int:
        """The number of a block in the network, from 0."""
        return sum(self.sizes[: stage - 1]) + block

    def covering(
        self, slot: str, stage: int, block: int, own: Placement | None = None
    ) -> Placement | None:
        """What a block has in a slot: the caller's layer, else the architecture's `own`."""
        chosen = self.placement(slot)
        size, gated = self.sizes[stage - 1], own is not None
        return chosen if chosen and chosen.covers(stage, block, size, gated) else own

    def layer(
        self, slot: str, stage: int, block: int, own: Placement | None = None
    ) -> LayerFactory | nn.Module | None:
        """What makes a block's layer in a slot, or is the layer, if its blocks share one."""
        chosen = self.covering(slot, stage, block, own)
        if chosen is None:
            return None
        if chosen.share:
            name = self.attention_name if slot == "attention" else slot
            return getattr(self, f"{self.stage_name(stage)}_{name}")
        return chosen.with_defaults(**self.dtypes)

    def block_fields(self, stage: int, block: int, own: Placement | None = None) -> dict[str, Any]:
        """The fields of a block that follow from its place in the network."""
        attention = self.covering("attention", stage, block, own)
        return {
            "attention": self.layer("attention", stage, block, own),
            "position": attention.position if attention else self.places.positions[0],
            "context": self.layer("context", stage, block),
            "drop_path": self.drop_rate(self.index(stage, block)),
        }

    def block_steps(self, stage: int, block: int) -> Steps:
        """A block's strides, the dilation of its middle convolution, and that of the stage."""
        strides, first_dilation, dilation = self.steps[stage]
        if self.multi_grid and stage == len(self.sizes):
            dilation *= self.multi_grid[block % len(self.multi_grid)]
            first_dilation = dilation
        elif block or self.dilate_first:
            first_dilation = dilation
        return Steps(1 if block else strides, first_dilation, dilation)

    def drop_rate(self, index: int) -> float:
        """How likely the residual branch of the network's block `index` is left out."""
        return self.drop_path * index / max(sum(self.sizes) - 1, 1)

    def stem_layers(self, images: Array, train: bool) -> Array:
        """The first level's map."""
        raise NotImplementedError

    def pool_layers(self, x: Array, train: bool) -> Array:
        """What stands between the stem's map and the first stage."""
        return x

    def level_maps(self, images: Array, train: bool) -> list[Array]:
        return self.maps(images, [(level, -1) for level in self._ends], train)

    def maps(
        self, images: Array, after: Sequence[tuple[int, int]], train: bool = False
    ) -> list[Array]:
        """The maps after these blocks; what follows the last of them is not computed.

        Args:
            after: (stage, block) in the order of the network, stages from 1, blocks from 0, or from
                -1 backwards; stage 0 is the stem.

        Raises InputError for a block that the network does not have.
        """
        wanted = [self._position(stage, block) for stage, block in after]
        with reading(self, images):
            found = self._maps_to(max(wanted)[0], images, train)
        return [found[position] for position in wanted]

    def _maps_to(self, last: int, images: Array, train: bool) -> dict[tuple[int, int], Array]:
        """The map after each block, up to the end of stage `last`."""
        x = self.stem_layers(images, train)
        found = {(0, 0): x}
        x = self.pool_layers(x, train)
        attention = self.placement("attention")
        for stage in range(1, last + 1):
            carry = None
            for index, block in enumerate(getattr(self, self.stage_name(stage))):
                if attention and attention.carries:
                    x, carry = block.step(x, carry, train)
                else:
                    x = block(x, train)
                found[stage, index] = x
        return found

    def _position(self, stage: int, block: int) -> tuple[int, int]:
        """The same block, counted from the front."""
        sizes = [1, *self.sizes]
        if stage not in range(len(sizes)) or block not in range(-sizes[stage], sizes[stage]):
            raise InputError(
                f"no block {block} in stage {stage}: this {type(self).__name__} has stages 1 to "
                f"{len(self.sizes)} with {tuple(self.sizes)} blocks, and the stem, (0, 0)."
            )
        return stage, block % sizes[stage]
