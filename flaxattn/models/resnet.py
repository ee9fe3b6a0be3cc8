"""Residual networks with slots for attention."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import LayerFactory, Namings, declared
from flaxattn.errors import InputError, require_least, unknown
from flaxattn.layers.conv import Conv, Initializer, kaiming_fan_out, torch_default
from flaxattn.layers.fields import require_types
from flaxattn.models.downsampling import DOWNSAMPLING
from flaxattn.models.place import place
from flaxattn.models.placement import Placement, Places, Slot, namings, with_others
from flaxattn.models.residual_backbone import ResidualBackbone
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
STEM_POOLS = ("max", "conv")
_OF_BOTTLENECKS = {"groups": 1, "group_width": 64, "first_reduction": 1, "pruned": None}


class ResNet(ResidualBackbone):
    """Residual network, numerically and by its parameters' names torchvision's and timm's.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385; with the strides of "version 1.5" (see `Bottleneck`). Its descendants are
    values of the fields (`resnets.RESNETS`).

    Fields, beside those of `ResidualBackbone`:
        stage_sizes: blocks in each stage.
        block: "basic", "bottleneck", or a subclass of `ResidualBlock`; or one for each stage.
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
        groups, group_width, first_reduction, shortcut, zero_init_last: of the blocks, see
            `ResidualBlock`.
        pruned: for each stage the channels that it puts out and, for each of its bottlenecks, those
            of the first and the middle convolution, where a network has lost some of them.
        downsampling: in blocks with strides, "strides" of the middle convolution, or a pool after
            it: "average", 2x2, "blur" (arXiv:1904.11486), "average_3x3" (ResNeSt,
            arXiv:2004.08955); or before it, "average_3x3_first". In the stem, "average"
            replaces the max pool, and "blur" its strides. "average" leaves out the last row of an
            odd map and the shortcut does not: it asks for even maps from the first stage on.
        own_attention: the architecture's, in every block where `attention` places no other: in any
            form that `place` takes.
        attention: in the residual branch, named `se` as in timm; False for none, not even its own.
        conv: layers instead of the middle convolutions, with groups of their own. One that
            `activates`, as selective kernels do, replaces the norm and the ReLU after it too.
        kernel_init: of the convolutions; `fc` has torch's default, and zero biases.

    With share=True all blocks of a stage that have the layer have the same one, and its weights
    stand beside the blocks: `layer3_se` or `layer3_context`, in torch's keys layer3_se.fc1.weight.
    A torch network whose blocks hold one and the same module lists its weights once for each block
    instead.

    Deviations: timm starts with zero_init_last, except in SK networks; and its ResNeSt applies drop
    path to the shortcut, where it has no effect unless the shape changes.

    Raises InputError also for fields that make no network, and for images whose maps "average"
    downsampling cannot halve.
    """

    stage_sizes: tuple[int, ...]
    block: Block | tuple[Block, ...] = "bottleneck"
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
    zero_init_last: bool = False
    own_attention: Slot = None
    conv: Slot = None
    kernel_init: Initializer = kaiming_fan_out

    head_name: ClassVar[str] = "fc"
    slots: ClassVar[tuple[str, ...]] = ("attention", "conv", "context")
    known_blocks: ClassVar[dict[str, type[ResidualBlock]]] = BLOCKS
    free_fields: ClassVar[frozenset[str]] = ResidualBackbone.free_fields | {
        "conv",
        "kernel_init",
        "own_attention",
        "zero_init_last",
    }

    def __post_init__(self) -> None:
        require_types(self)
        self.stage_sizes = tuple(self.stage_sizes)
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise InputError(
                f"stage_sizes={self.stage_sizes} makes no network: use a number of blocks, 1 or "
                f"more, for at least one stage."
            )
        for field in ("block", "width"):
            values = getattr(self, field)
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
        self.require_known("stem", STEMS)
        self.require_known("stem_pool", STEM_POOLS)
        self.require_known("shortcut", SHORTCUTS)
        self.require_known("downsampling", DOWNSAMPLING)
        for field in ("groups", "group_width", "first_reduction"):
            require_least(field, getattr(self, field), 1)
        for width in self.widths:
            require_least("width", width, 1)
        if self.stem_width is not None:
            require_least("stem_width", self.stem_width, 1)
        basic = any(issubclass(block, BasicBlock) for block in self.block_classes)
        for field, usual in _OF_BOTTLENECKS.items():
            if basic and getattr(self, field) != usual:
                raise InputError(
                    f"{field}={getattr(self, field)} is for bottlenecks: use block='bottleneck', "
                    f"or leave it out."
                )
        if self.pruned is not None:
            sizes = tuple(len(blocks) for _, blocks in self.pruned)
            if sizes != self.stage_sizes:
                raise InputError(
                    f"pruned has the widths of {sizes} blocks in the stages: give those of "
                    f"stage_sizes={self.stage_sizes}."
                )
            if self.groups != 1:
                raise InputError(
                    f"pruned with groups={self.groups}: only the widths of bottlenecks without "
                    f"groups can be given; leave one of them out."
                )
        self.own_attention = place("attention", self.own_attention, Places(self.stage_sizes))
        super().__post_init__()

    @property
    def places(self) -> Places:
        gated = enumerate(self.stage_sizes if self.own_attention else (), start=1)
        every = ((stage, block) for stage, size in gated for block in range(size))
        return Places(self.stage_sizes, gated=frozenset(every))

    @property
    def block_classes(self) -> tuple[type[ResidualBlock], ...]:
        """The class of each stage's blocks."""
        blocks = self.block if isinstance(self.block, tuple) else (self.block,) * len(self.sizes)
        return tuple(self.known_blocks[b] if isinstance(b, str) else b for b in blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each stage."""
        if isinstance(self.width, tuple):
            return self.width
        return tuple(self.width * 2**stage for stage in range(len(self.sizes)))

    @property
    def levels(self) -> list[tuple[int, int]]:
        first = 1 if self.stem == "small" else 2
        if self.pruned is not None:
            channels = [features for features, _ in self.pruned]
        else:
            pairs = zip(self.widths, self.block_classes, strict=True)
            channels = [width * block.expansion for width, block in pairs]
        # A stage's strides are its first block's, and the first stage's those of the pool.
        strides = [first, *(2 for _ in channels[1:])]
        return [(self._stem_convs()[-1][0], first), *zip(channels, strides, strict=True)]

    @property
    def namings(self) -> Namings:
        """The renames of the slots' layers, by source name, for `flaxattn.weights`."""
        conv = self.placement("conv")
        middle = {f"conv{block.middle_index}": conv for block in self.block_classes}
        own = namings({self.attention_name: self.own_placement})
        tables = with_others(self.slot_namings(**middle), own)
        return tables | {"timm": (*tables.get("timm", ()), *self._timm_pairs())}

    @property
    def own_placement(self) -> Placement | None:
        """The architecture's own attention, unless it is told to have none."""
        own = self.own_attention
        return own if isinstance(own, Placement) and self.attention is not False else None

    def setup(self) -> None:
        self.setup_stem()
        self.add_stages()
        self.add_classifier(torch_default)

    @property
    def make_conv(self) -> LayerFactory:
        """Makes a convolution from (features, kernel_size, strides=, dilation=, groups=, name=)."""
        return functools.partial(Conv, use_bias=False, kernel_init=self.kernel_init, **self.dtypes)

    def setup_stem(self) -> None:
        """Makes the layers that `stem_layers` and `pool_layers` apply."""
        *first, last = [
            self.make_conv(features, size, strides=strides)
            for features, size, strides in self._stem_convs()
        ]
        # A list, as torch.nn.Sequential numbers its modules, where there are several.
        layers: Any = [layer for c in first for layer in (c, self.make_norm(), jax.nn.relu)]
        self.conv1 = [*layers, last] if first else last
        self.bn1 = self.make_norm()
        if self.stem_pool == "conv":
            self.maxpool = [
                self.make_conv(self._stem_convs()[-1][0], 3, strides=2),
                self.make_norm(),
            ]

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
        if self.stem == "small":
            return x
        if self.stem_pool == "conv":
            conv, bn = self.maxpool
            return jax.nn.relu(bn(conv(x), train))
        return DOWNSAMPLING[self.downsampling].stem(x, 2)

    def _stem_convs(self) -> tuple[tuple[int, int, int], ...]:
        width = self.widths[0]
        return STEMS[self.stem](width, width // 2 if self.stem_width is None else self.stem_width)

    def stage_name(self, stage: int) -> str:
        return f"layer{stage}"

    def make_block(self, stage: int, block: int) -> ResidualBlock:
        pruned = None
        if self.pruned is not None:
            features, widths = self.pruned[stage - 1]
            pruned = (*widths[block], features)
        steps = self.block_steps(stage, block)
        if stage == 1:
            steps = steps._replace(strides=1)  # the pool's, see `levels`
        return self.block_classes[stage - 1](
            width=self.widths[stage - 1],
            **steps._asdict(),
            conv=self.make_conv,
            norm=self.make_norm,
            middle=self._middle(stage, block, steps.first_dilation),
            attention_name=self.attention_name,
            groups=self.groups,
            group_width=self.group_width,
            first_reduction=self.first_reduction,
            pruned=pruned,
            shortcut=self.shortcut,
            downsampling=DOWNSAMPLING[self.downsampling],
            zero_init_last=self.zero_init_last,
            **self.block_fields(stage, block, self.own_placement),
        )

    def _middle(self, stage: int, block: int, dilation: int) -> LayerFactory | None:
        """What makes a layer instead of a block's middle convolution, if anything does."""
        conv = self.covering("conv", stage, block)
        if conv is None:
            return None
        if dilation > 1 and "dilation" not in conv.fields:
            raise InputError(
                f"{conv.layer.__name__} in stage {stage} has no dilation, which output_stride="
                f"{self.output_stride} needs there: place it in other stages, or use "
                f"output_stride=32."
            )
        return conv.with_defaults(dilation=dilation, **self.dtypes)

    def _timm_pairs(self) -> Iterator[tuple[str, str]]:
        """Renames of the convolutions and norms that timm keeps in pairs beside a block's layer."""
        conv = self.placement("conv")
        if conv is None or not declared(conv.layer, "timm_pairs"):
            return
        for stage, size in enumerate(self.sizes, start=1):
            for block in range(size):
                if conv.covers(stage, block, size):
                    theirs, ours = f"layer{stage}.{block}", f"layer{stage}_{block}"
                    for i in self.block_classes[stage - 1].other_indices:
                        yield f"{theirs}.conv{i}.conv", f"{ours}.conv{i}"
                        yield f"{theirs}.conv{i}.bn", f"{ours}.bn{i}"
