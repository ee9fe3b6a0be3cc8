"""What the networks have in common: slots, stages, features, pool, dropout and classifier."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory, Renames
from flaxattn.errors import InputError, require_least, require_rate, unknown
from flaxattn.layers.conv import Initializer
from flaxattn.layers.fields import require_types
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool, max_pool, mean_of
from flaxattn.models.calls import own_variables, reading
from flaxattn.models.place import place
from flaxattn.models.placement import Placement, Places, Slot, namings

# timm's names: (N, H, W, C) -> (N, C), and twice as many channels for the last.
GLOBAL_POOLS: dict[str, Callable[[Array], Array]] = {
    "avg": average_pool,
    "max": max_pool,
    "avgmax": lambda x: mean_of([average_pool(x), max_pool(x)]),
    "catavgmax": lambda x: jnp.concatenate([average_pool(x), max_pool(x)], axis=-1),
}


def _as_the_input(*arrays: Any, **_: Any) -> list[Any]:
    """A layer's input and parameters in the input's dtype, as its `promote_dtype`."""
    return [array.astype(arrays[0].dtype) for array in arrays]


# The last layer: it computes in its input's dtype, float32 or wider after pooling.
Classifier = functools.partial(nn.Dense, promote_dtype=_as_the_input)


class Backbone(nn.Module, kw_only=True):
    """A convolutional network with attention in it, that ends in a pool and a classifier.

    images (N, H, W, C) -> logits (N, num_classes), or what the classifier would see if num_classes
    is 0, both float32 or wider. `features` returns the last map at each stride.

    Fields:
        num_classes: width of the last layer; 0 leaves it out.
        global_pool: "avg", "max", "avgmax", their mean, or "catavgmax", one after the other.
        dropout: how likely a feature before the last layer is left out in train mode.
        attention: layers in the network, in any form that `place.place` takes.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train). Layers in the slots have their own.

    A dtype that the placement of a slot sets itself stays as it is. Random numbers come from the
    "dropout" stream.

    Raises InputError when constructed with an unknown pool, a negative `num_classes`, a rate
    outside [0, 1), or a slot that `place` refuses; and when called, for a layer that changes the
    shape of its map.
    """

    num_classes: int = 1000
    global_pool: str = "avg"
    dropout: float = 0.0
    attention: Slot = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    norm: Callable[..., nn.Module] = BatchNorm

    # What the last layer is called.
    head_name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]] = ("attention",)
    # Fields that may differ from those of the network whose trained weights it has.
    free_fields: ClassVar[frozenset[str]] = frozenset(
        {"attention", "dropout", "dtype", "global_pool", "name", "num_classes", "param_dtype"}
        | {"parent"}
    )

    def __post_init__(self) -> None:
        require_types(self)
        self.require_known("global_pool", GLOBAL_POOLS)
        require_least("num_classes", self.num_classes, 0)
        require_rate("dropout", self.dropout)
        for slot in self.slots:
            value = getattr(self, slot)
            if value is not False or not self.places.gated:
                setattr(self, slot, place(slot, value, self.places))
        super().__post_init__()

    def require_known(self, field: str, known: Collection[str]) -> None:
        """InputError unless the field's value is one of `known`."""
        if getattr(self, field) not in known:
            raise unknown(field, getattr(self, field), known)

    @property
    def places(self) -> Places:
        """Where layers can stand."""
        raise NotImplementedError

    @property
    def sizes(self) -> Sequence[int]:
        """How many blocks each stage has, or convolutions in a network without blocks."""
        return self.places.sizes

    @property
    def last_stage(self) -> list[str]:
        """The names of the modules of the last stage."""
        raise NotImplementedError

    @property
    def dtypes(self) -> dict[str, Any]:
        """What the layers are made with."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def make_norm(self) -> LayerFactory:
        """Makes a normalisation from (name=), to be called with (x, train)."""
        return functools.partial(self.norm, **self.dtypes)

    @property
    def elsewhere(self) -> Mapping[str, str]:
        """By the naming of a file, the network of the same tensors that it is of instead."""
        return {}

    def differs_from(self, other: "Backbone") -> list[str]:
        """The fields in which two networks of the same tensors compute something else.

        What each of them is used for is left out: head, slots, dtypes, rates, initialisers.
        """
        if type(self) is not type(other):
            return ["its class"]
        own = {field.name for field in dataclasses.fields(self)} - self.free_fields
        return sorted(name for name in own if _known(self, name) != _known(other, name))

    def placement(self, slot: str) -> Placement | None:
        """What the caller put into a slot."""
        value = getattr(self, slot)
        return value if isinstance(value, Placement) else None

    def add_classifier(self, kernel_init: Initializer) -> None:
        """Makes, in `setup`, the layers after the pool."""
        self.drop = nn.Dropout(self.dropout)
        if self.num_classes:
            classifier = Classifier(
                self.num_classes, param_dtype=self.param_dtype, kernel_init=kernel_init
            )
            setattr(self, self.head_name, classifier)

    def __call__(self, images: Array, train: bool = False) -> Array:
        pooled = self.pooled(self.features(images, train)[-1], train)
        if not self.num_classes:
            return pooled
        with own_variables(self):
            return getattr(self, self.head_name)(self.drop(pooled, deterministic=not train))

    def pooled(self, x: Array, train: bool) -> Array:
        """What the classifier sees of the last map: (N, H, W, C) -> (N, features)."""
        return GLOBAL_POOLS[self.global_pool](x)

    def features(self, images: Array, train: bool = False) -> list[Array]:
        """The last map at each stride: model.apply(variables, images, method="features").

        `feature_strides` times smaller than the images, and of `feature_channels` channels.
        """
        with reading(self, images):
            return self.level_maps(images, train)

    def level_maps(self, images: Array, train: bool) -> list[Array]:
        """What `features` returns, of images that have been looked at."""
        raise NotImplementedError


def _known(network: Backbone, field: str) -> Any:
    """A field's value; of a norm what it computes in evaluation."""
    value = getattr(network, field)
    if field != "norm":
        return value
    norm = value(parent=None)
    fields = {f.name: getattr(norm, f.name) for f in dataclasses.fields(norm)}
    return type(norm), {k: v for k, v in fields.items() if k in ("epsilon", "num_groups")}


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
