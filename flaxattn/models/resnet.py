"""Residual networks with slots for attention."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention import SelectiveKernel
from flaxattn.attention.mechanism import LayerFactory
from flaxattn.errors import InputError, require_count, require_rate, unknown
from flaxattn.layers.conv import Conv, Initializer, kaiming_fan_out, torch_default
from flaxattn.layers.norm import BatchNorm
from flaxattn.models.downsampling import DOWNSAMPLING
from flaxattn.models.head import GLOBAL_POOLS, Classifier
from flaxattn.models.placement import Placement, namings, place
from flaxattn.models.residual_block import BLOCKS, SHORTCUTS, BasicBlock, ResidualBlock

Block = str | type[ResidualBlock]

# The stem's convolutions from the network's width and the deep stem's own: features, kernel size
# and strides of each.
STEMS: dict[str, Callable[[int, int], tuple[tuple[int, int, int], ...]]] = {
    "imagenet": lambda width, _: ((width, 7, 2),),
    "deep": lambda _, width: ((width, 3, 2), (width, 3, 1), (2 * width, 3, 1)),
    "tiered": lambda _, width: ((width // 4 * 3, 3, 2), (width, 3, 1), (2 * width, 3, 1)),
    "small": lambda width, _: ((width, 3, 1),),
}

_LEAST = {"num_classes": 0, "groups": 1, "group_width": 1, "first_reduction": 1}

STEM_POOLS = ("max", "conv")


class ResNet(nn.Module):
    """Residual network, numerically and by its parameters' names torchvision's and timm's.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385; with the strides of "version 1.5" (see `Bottleneck`). Its descendants are
    values of the fields (`resnets.RESNETS`).

    images (N, H, W, C) -> logits (N, num_classes), or pooled features if num_classes is 0, both
    float32 or wider. `features` answers the last map at each stride.

    Fields:
        stage_sizes: blocks in each stage.
        block: "basic", "bottleneck", or a subclass of `ResidualBlock`; or one for each stage.
        num_classes: width of the last layer, `fc`; 0 leaves it out.
        width: channels of the stem, and of the first stage's middle convolutions; they double from
            stage to stage. Or those of each stage.
        stem: "imagenet", a 7x7 convolution with strides 2; "deep", three 3x3 convolutions, the
            first with strides 2 (He et al. 2019, arXiv:1812.01187, ResNet-C); "tiered", the same
            with a narrower first one; each is followed by a pool with strides 2. Or "small", a 3x3
            convolution at full size for images of 32 pixels or so, as the paper's on CIFAR.
        stem_width: channels of a deep or tiered stem's second convolution, half of those it puts
            out; None for half of the first width.
        stem_pool: "max", or "conv", a 3x3 convolution with strides 2, a norm and a ReLU
            (ResNet-RS, arXiv:2103.07579).
        groups: of bottlenecks' middle convolutions,
        group_width: and the channels of each group in a stage of width 64: 32 and 4 are ResNeXt
            32x4d (arXiv:1611.05431), 1 and 128 are Wide ResNet (arXiv:1605.07146).
        first_reduction: how many times narrower than the middle one a bottleneck's first
            convolution is.
        pruned: for each stage the channels that it puts out and, for each of its bottlenecks, those
            of the first and the middle convolution, where a network has lost some of them.
        shortcut: where the shape changes: "1x1", a convolution with the strides; "average", an
            average pool before it instead of strides (ResNet-D, arXiv:1812.01187); or "3x3" where
            there are strides, and 1x1 else (SENet-154).
        downsampling: in blocks with strides, "strides" of the middle convolution, or a pool after
            it: "average", 2x2, "blur" (arXiv:1904.11486), "average_3x3" (ResNeSt,
            arXiv:2004.08955); or before it, "average_3x3_first". In the stem, "average"
            replaces the max pool, and "blur" its strides. "average" leaves out the last row of an
            odd map and the shortcut does not: it asks for even maps from the first stage on.
        global_pool: "avg", "max", "avgmax", their mean, or "catavgmax", one after the other.
        dropout: how likely a feature before the last layer is left out in train mode.
        drop_path: likewise the last block's residual branch, for a whole sample; the first one's
            never, with linear growth between (arXiv:1603.09382).
        zero_init_last: start each residual branch's last norm at zero.
        attention, conv, context: the layers in the slots, in any form `placement.place` takes:
            attention in the residual branch, named `se` as in timm; conv, with groups of its own,
            instead of the middle convolution, and of its norm and ReLU too if the layer says that
            it `activates`, that is, ends in a normalisation and a ReLU of its own, as selective
            kernels do; context after the add and its ReLU, named `context`. With share=True all
            blocks of a stage that have the layer have the same one, and its weights stand beside
            the blocks: `layer3_se` or `layer3_context`, in torch's keys layer3_se.fc1.weight. A
            torch network whose blocks hold one and the same module lists its weights once for each
            block instead.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        kernel_init: of the convolutions; `fc` has torch's default, and zero biases.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train). Layers in the slots have their own.

    A dtype that the placement of a slot sets itself stays as it is. Dropout and drop path take
    their numbers from the "dropout" stream.

    Deviations: timm starts with zero_init_last, except in SK networks; and its ResNeSt applies drop
    path to the shortcut, where it has no effect unless the shape changes.

    Raises InputError when constructed with an unknown block, stem, pool, shortcut or downsampling,
    `stage_sizes` or a width below one, blocks or widths that are not as many as the stages,
    `pruned` for other blocks than there are,
    negative `num_classes`, rates outside [0, 1), groups for basic blocks, or a slot `place`
    refuses; and when called, for a layer in the attention or context slot that changes the shape of
    its map, and for images whose maps "average" downsampling cannot halve.
    """

    stage_sizes: tuple[int, ...]
    block: Block | tuple[Block, ...] = "bottleneck"
    num_classes: int = 1000
    width: int | tuple[int, ...] = 64
    stem: str = "imagenet"
    stem_width: int | None = None
    stem_pool: str = "max"
    groups: int = 1
    group_width: int = 64
    first_reduction: int = 1
    pruned: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] | None = None
    shortcut: str = "1x1"
    downsampling: str = "strides"
    global_pool: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0
    zero_init_last: bool = False
    attention: Any = None
    conv: Any = None
    context: Any = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = kaiming_fan_out
    norm: Callable[..., nn.Module] = BatchNorm

    head_name: ClassVar[str] = "fc"
    attention_name: ClassVar[str] = "se"
    known_blocks: ClassVar[dict[str, type[ResidualBlock]]] = BLOCKS

    def __post_init__(self) -> None:
        self.stage_sizes = tuple(self.stage_sizes)
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise InputError(
                f"stage_sizes={self.stage_sizes} makes no network: use a number of blocks, 1 or "
                f"more, for at least one stage."
            )
        self._require_known()
        for field, least in _LEAST.items():
            require_count(field, getattr(self, field), least)
        for field in ("dropout", "drop_path"):
            require_rate(field, getattr(self, field))
        for width in self.widths:
            require_count("width", width, 1)
        if self.stem_width is not None:
            require_count("stem_width", self.stem_width, 1)
        grouped = (self.groups, self.group_width, self.first_reduction) != (1, 64, 1)
        if grouped and any(issubclass(block, BasicBlock) for block in self.block_classes):
            raise InputError(
                f"groups={self.groups}, group_width={self.group_width}, first_reduction="
                f"{self.first_reduction} are of bottlenecks: use block='bottleneck', or leave them "
                f"out."
            )
        self._require_every_pruned_block()
        self.attention = place("attention", self.attention, self.stage_sizes)
        self.conv = place("conv", self.conv, self.stage_sizes)
        self.context = place("context", self.context, self.stage_sizes)
        super().__post_init__()

    def _require_every_pruned_block(self) -> None:
        if self.pruned is None:
            return
        sizes = tuple(len(blocks) for _, blocks in self.pruned)
        if sizes != self.stage_sizes:
            raise InputError(
                f"pruned has the widths of {sizes} blocks in the stages: give those of "
                f"stage_sizes={self.stage_sizes}."
            )
        if self.groups != 1 or any(issubclass(b, BasicBlock) for b in self.block_classes):
            raise InputError(
                f"pruned with block={self.block!r} and groups={self.groups}: only the widths of "
                f"bottlenecks without groups can be given so; leave it out."
            )

    def _require_known(self) -> None:
        for field, values in (("block", self.block), ("width", self.width)):
            if isinstance(values, list | tuple):
                setattr(self, field, tuple(values))
                if len(values) != len(self.stage_sizes):
                    raise InputError(
                        f"{field}={values} are {len(values)} for {len(self.stage_sizes)} stages: "
                        f"use one for each, or a single one for all."
                    )
        for block in self.block if isinstance(self.block, tuple) else (self.block,):
            if isinstance(block, str) and block not in self.known_blocks:
                raise unknown("block", block, self.known_blocks)
        for field, known in (
            ("stem", STEMS),
            ("stem_pool", STEM_POOLS),
            ("shortcut", SHORTCUTS),
            ("downsampling", DOWNSAMPLING),
            ("global_pool", GLOBAL_POOLS),
        ):
            if getattr(self, field) not in known:
                raise unknown(field, getattr(self, field), known)

    @property
    def block_classes(self) -> tuple[type[ResidualBlock], ...]:
        """The class of each stage's blocks."""
        blocks = self.block if isinstance(self.block, tuple) else (self.block,) * len(self.widths)
        return tuple(self.known_blocks[b] if isinstance(b, str) else b for b in blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each stage."""
        if isinstance(self.width, tuple):
            return self.width
        return tuple(self.width * 2**stage for stage in range(len(self.stage_sizes)))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `features`."""
        stem = () if self.stem == "small" else (self._stem_convs()[-1][0],)
        if self.pruned is not None:
            return *stem, *(features for features, _ in self.pruned)
        pairs = zip(self.widths, self.block_classes, strict=True)
        return *stem, *(width * block.expansion for width, block in pairs)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the image to one of each map of `features`, along either axis."""
        first = 1 if self.stem == "small" else 2
        return tuple(first * 2**level for level in range(len(self.feature_channels)))

    @property
    def namings(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """The renames of the slots' layers, by source name, for `flaxattn.weights`."""
        slots = {self.attention_name: self.attention}
        for block in self.block_classes:
            slots["conv1" if issubclass(block, BasicBlock) else "conv2"] = self.conv
        slots["context"] = self.context
        for name, placement in self._shared().items():
            del slots[name]
            stages = range(1, len(self.stage_sizes) + 1)
            slots |= {f"layer{stage}_{name}": placement for stage in stages}
        tables = namings(slots)
        return tables | {"timm": (*tables.get("timm", ()), *self._beside_selective_kernels())}

    def setup(self) -> None:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: LayerFactory = functools.partial(
            Conv, use_bias=False, kernel_init=self.kernel_init, **dtypes
        )
        norm = functools.partial(self.norm, **dtypes)
        self.setup_stem(conv, norm)
        for stage, size in enumerate(self.stage_sizes, start=1):
            for name, placement in self._shared().items():
                setattr(self, f"layer{stage}_{name}", self._factory(placement)())
            blocks = [self._block(stage, block, conv, norm) for block in range(size)]
            setattr(self, f"layer{stage}", blocks)
        self.drop = nn.Dropout(self.dropout)
        if self.num_classes:
            classifier = Classifier(
                self.num_classes, param_dtype=self.param_dtype, kernel_init=torch_default
            )
            setattr(self, self.head_name, classifier)

    def setup_stem(self, conv: LayerFactory, norm: LayerFactory) -> None:
        """The layers that `stem_layers` and `pool_layers` apply."""
        *first, last = [
            conv(features, size, strides=strides) for features, size, strides in self._stem_convs()
        ]
        # A list, as torch.nn.Sequential numbers its modules, where there are several.
        layers: Any = [layer for c in first for layer in (c, norm(), jax.nn.relu)]
        self.conv1 = [*layers, last] if first else last
        self.bn1 = norm()
        if self.stem_pool == "conv":
            self.maxpool = [conv(self._stem_convs()[-1][0], 3, strides=2), norm()]

    def __call__(self, images: Array, train: bool = False) -> Array:
        pooled = GLOBAL_POOLS[self.global_pool](self.features(images, train)[-1])
        if not self.num_classes:
            return pooled
        return getattr(self, self.head_name)(self.drop(pooled, deterministic=not train))

    def features(self, images: Array, train: bool = False) -> list[Array]:
        """The map of the stem before its pool, if it has one, and the map after each stage.

        `feature_strides` times smaller than the images, rounded up. Call it as
        `model.apply(variables, images, method="features")`.
        """
        x = self.stem_layers(images, train)
        carries = self.attention is not None and self.attention.carries
        maps = []
        if self.stem != "small":
            maps.append(x)
            x = self.pool_layers(x, train)
        for stage in range(1, len(self.stage_sizes) + 1):
            carry = None
            for block in getattr(self, f"layer{stage}"):
                if carries:
                    x, carry = block.step(x, carry, train)
                else:
                    x = block(x, train)
            maps.append(x)
        return maps

    def stem_layers(self, images: Array, train: bool) -> Array:
        """What stands before the pool, or before the first stage if there is none."""
        if isinstance(self.conv1, nn.Module):
            x = self.conv1(images)
        else:
            conv1, bn1, relu, conv2, bn2, _, conv3 = self.conv1
            x = relu(bn1(conv1(images), train))
            x = conv3(relu(bn2(conv2(x), train)))
        return jax.nn.relu(self.bn1(x, train))

    def pool_layers(self, x: Array, train: bool) -> Array:
        """The pool with strides 2 between the stem's convolutions and the first stage."""
        if self.stem_pool == "conv":
            conv, bn = self.maxpool
            return jax.nn.relu(bn(conv(x), train))
        return DOWNSAMPLING[self.downsampling].stem(x, 2)

    def _stem_convs(self) -> tuple[tuple[int, int, int], ...]:
        width = self.widths[0]
        return STEMS[self.stem](width, width // 2 if self.stem_width is None else self.stem_width)

    def _block(self, stage: int, block: int, conv: LayerFactory, norm: LayerFactory) -> nn.Module:
        layer = functools.partial(self._layer, stage, block)
        pruned = None
        if self.pruned is not None:
            features, widths = self.pruned[stage - 1]
            pruned = (*widths[block], features)
        index, last = sum(self.stage_sizes[: stage - 1]) + block, sum(self.stage_sizes) - 1
        return self.block_classes[stage - 1](
            width=self.widths[stage - 1],
            strides=2 if stage > 1 and block == 0 else 1,
            conv=conv,
            norm=norm,
            middle=layer("conv", self.conv),
            attention=layer(self.attention_name, self.attention),
            attention_name=self.attention_name,
            position=self.attention.position if self.attention else "out",
            context=layer("context", self.context),
            groups=self.groups,
            group_width=self.group_width,
            first_reduction=self.first_reduction,
            pruned=pruned,
            shortcut=self.shortcut,
            downsampling=DOWNSAMPLING[self.downsampling],
            drop_path=self.drop_path * index / max(last, 1),
            zero_init_last=self.zero_init_last,
        )

    def _layer(
        self, stage: int, block: int, name: str, placement: Placement | None
    ) -> LayerFactory | nn.Module | None:
        """What a slot of one block gets: the stage's shared layer, a factory, or nothing."""
        if placement is None or not placement.covers(stage, block, self.stage_sizes[stage - 1]):
            return None
        if placement.share:
            return getattr(self, f"layer{stage}_{name}")
        return self._factory(placement)

    def _factory(self, placement: Placement) -> LayerFactory:
        return placement.with_defaults(dtype=self.dtype, param_dtype=self.param_dtype)

    def _shared(self) -> dict[str, Placement]:
        """The placements of which each stage has one layer, by their layer's name in a block."""
        slots = {self.attention_name: self.attention, "context": self.context}
        return {name: slot for name, slot in slots.items() if slot is not None and slot.share}

    def _beside_selective_kernels(self) -> list[tuple[str, str]]:
        """Renames: beside a selective kernel, timm has a convolution and its norm in one module."""
        if self.conv is None or not issubclass(self.conv.layer, SelectiveKernel):
            return []
        renames = []
        for stage, size in enumerate(self.stage_sizes, start=1):
            basic = issubclass(self.block_classes[stage - 1], BasicBlock)
            for block in range(size):
                if self.conv.covers(stage, block, size):
                    theirs, ours = f"layer{stage}.{block}", f"layer{stage}_{block}"
                    for i in (2,) if basic else (1, 3):
                        renames.append((f"{theirs}.conv{i}.conv", f"{ours}.conv{i}"))
                        renames.append((f"{theirs}.conv{i}.bn", f"{ours}.bn{i}"))
        return renames
