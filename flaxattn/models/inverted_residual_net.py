"""MobileNets, EfficientNets and their kin: one network, made from a table of blocks."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import LayerFactory, Namings, Renames, declared
from flaxattn.errors import InputError, require_least, unknown
from flaxattn.layers.conv import Conv
from flaxattn.layers.fields import require_types
from flaxattn.layers.precision import at_least_float32
from flaxattn.models.backbone import GLOBAL_POOLS
from flaxattn.models.block_spec import BlockSpec, Gate, Stages, expand, read_table
from flaxattn.models.inverted_residual import (
    CONVS,
    MIDDLE,
    InvertedResidualBlock,
    fan_out_of,
    pad_same,
)
from flaxattn.models.placement import Placement, Places, renames_below, with_others
from flaxattn.models.residual_backbone import ResidualBackbone

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "silu": jax.nn.silu,
}
HEADS = ("conv_first", "pool_first")
PADDINGS = ("symmetric", "same")


class InvertedResidualNet(ResidualBackbone):
    """MobileNet, EfficientNet or one of their kin, as its table says; timm's, by its names.

    Howard et al. 2017, arXiv:1704.04861; Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019,
    arXiv:1905.02244; Tan and Le, arXiv:1905.11946 and arXiv:2104.00298; the tables of the others
    name theirs.

    Fields, beside those of `ResidualBackbone`:
        stages: the table: a tuple of rows, `BlockSpec`, for each stage.
        stem_features, stem_kernel_size: of the first convolution, which has strides 2.
        head_features: of the last convolution, a 1x1; 0 leaves it out.
        head: "conv_first", 1x1 convolution, norm, activation, pool (EfficientNet); or "pool_first",
            pool, 1x1 convolution with a bias if `head_bias`, activation (MobileNetV3).
        activation: a key of ACTIVATIONS.
        gate: makes the attention of the blocks whose row has `se`.
        expert_conv: makes the convolutions of the blocks whose row has `experts`, as `CondConv`.
        padding: "symmetric", as in torch; or "same", TensorFlow's, which puts the odd row and
            column of zeros of a convolution with strides below and on the right.
        torchvision: how torchvision numbers the layers, if it has the network: "efficientnet",
            "mobilenet_v2" or "mobilenet_v3". Its weights then load as naming="torchvision".
        timm: timm's network of the same tensors, where that computes something else.
        drop_path: as in timm, it would be reached by a block after the last one.
        attention: None, the architecture's own; False, none at all; or what stands in its place.
            Without `blocks` that is in the blocks that have squeeze-and-excitation, or in all,
            where no block has; with blocks="all" in the others too. Blocks that are not chosen keep
            their own. At position "mid", the usual one, it sees the map inside the block, expanded,
            before the projection; at "out" the map that the block returns, before the add.

    Convolutions start as N(0, 2 / fan_out) with the fan-out of one group, the classifier as
    U(-1/sqrt(num_classes), 1/sqrt(num_classes)), as in TensorFlow's code.

    Raises InputError also for unknown kinds, heads, paddings and activations, a table without
    blocks, and `share` in a slot, for the blocks of a stage differ in width.
    """

    stages: Stages
    stem_features: int = 32
    stem_kernel_size: int = 3
    head_features: int = 1280
    head: str = "conv_first"
    head_bias: bool = True
    activation: str = "relu"
    gate: Gate | None = None
    expert_conv: LayerFactory | None = None
    padding: str = "symmetric"
    torchvision: str | None = None
    timm: str | None = None

    head_name: ClassVar[str] = "classifier"
    free_fields: ClassVar[frozenset[str]] = ResidualBackbone.free_fields | {"timm", "torchvision"}

    def __post_init__(self) -> None:
        self.stages = expand(read_table(self.stages))
        require_types(self)
        if not self.stages or not all(self.stages):
            raise InputError(
                f"stages={self.stages} makes no network: use a row or more for each of one or "
                f"more stages."
            )
        self.require_known("head", HEADS)
        self.require_known("padding", PADDINGS)
        self.require_known("activation", ACTIVATIONS)
        for spec in self._rows:
            if spec.kind not in CONVS:
                raise unknown("kind", spec.kind, CONVS)
            if spec.activation is not None and spec.activation not in ACTIVATIONS:
                raise unknown("activation", spec.activation, ACTIVATIONS)
        for field, share in (("gate", "se"), ("expert_conv", "experts")):
            if getattr(self, field) is None and any(getattr(spec, share) for spec in self._rows):
                raise InputError(
                    f"a row of the table has `{share}`: pass {field}=..., which makes its layers."
                )
        require_least("stem_features", self.stem_features, 1)
        require_least("head_features", self.head_features, 0)
        super().__post_init__()

    @property
    def _rows(self) -> list[BlockSpec]:
        return [spec for stage in self.stages for spec in stage]

    @property
    def places(self) -> Places:
        gated = frozenset(
            (stage, block)
            for stage, rows in enumerate(self.stages, start=1)
            for block, spec in enumerate(rows)
            if spec.se
        )
        return Places([*map(len, self.stages)], ("mid", "out"), gated=gated, shareable=False)

    @property
    def levels(self) -> list[tuple[int, int]]:
        ends = [(stage[-1].features, stage[0].strides) for stage in self.stages]
        return [(self.stem_features, 2), *ends]

    @property
    def elsewhere(self) -> Mapping[str, str]:
        return {} if self.timm is None else {"timm": self.timm}

    @property
    def namings(self) -> Namings:
        """The renames of timm's and torchvision's weights, and of the slots' layers."""
        tables: dict[str, Renames] = {"timm": self._timm()}
        if self.torchvision is not None:
            tables["torchvision"] = self._torchvision()
        return with_others(tables, self.slot_namings())

    def setup(self) -> None:
        conv: LayerFactory = functools.partial(Conv, kernel_init=fan_out_of(1), **self.dtypes)
        self.conv_stem = conv(
            self.stem_features,
            self.stem_kernel_size,
            strides=2,
            padding=0 if self.padding == "same" else None,
            use_bias=False,
        )
        self.bn1 = self.make_norm()
        self.add_stages()
        if self.head_features:
            pool_first = self.head == "pool_first"
            self.conv_head = conv(self.head_features, use_bias=pool_first and self.head_bias)
            if not pool_first:
                self.bn2 = self.make_norm()
        self.add_classifier(nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"))

    def pooled(self, x: Array, train: bool) -> Array:
        activation, pool = ACTIVATIONS[self.activation], GLOBAL_POOLS[self.global_pool]
        if self.head == "pool_first":
            x = pool(x)[:, None, None, :].astype(x.dtype)
            if self.head_features:
                x = activation(self.conv_head(x))
            return x[:, 0, 0, :].astype(at_least_float32(x.dtype))
        if self.head_features:
            x = activation(self.bn2(self.conv_head(x), train))
        return pool(x)

    def stage_name(self, stage: int) -> str:
        return f"blocks_{stage - 1}"

    def stem_layers(self, images: Array, train: bool) -> Array:
        if self.padding == "same":
            images = pad_same(images, self.stem_kernel_size, 2)
        return ACTIVATIONS[self.activation](self.bn1(self.conv_stem(images), train))

    def drop_rate(self, index: int) -> float:
        return self.drop_path * index / len(self._rows)

    def make_block(self, stage: int, block: int) -> nn.Module:
        spec = self.stages[stage - 1][block]
        activation = ACTIVATIONS[spec.activation or self.activation]
        own, index = None, self.index(stage, block)
        if self.gate is not None and spec.se and self.attention is not False:
            before = self._rows[index - 1].features if index else self.stem_features
            factory = self.gate(spec, spec.inner_features(before), activation)
            own = Placement(factory, position="mid")
        strides, dilation, _ = self.block_steps(stage, block)
        return InvertedResidualBlock(
            spec=spec._replace(strides=strides),
            dilation=dilation,
            activation=activation,
            norm=self.make_norm,
            padding=self.padding,
            expert_conv=self.expert_conv,
            **self.block_fields(stage, block, own),
            **self.dtypes,
        )

    def _timm(self) -> Renames:
        """The parts of the blocks whose names are not timm's here."""
        renames: list[tuple[str, ...]] = []
        if any(spec.experts for spec in self._rows):
            for name in ("conv_pw", "conv_dw", "conv_pwl"):
                renames.append((f"{name}.weight", f"{name}.kernels", "flat"))
        gated = next((spec for spec in self._rows if spec.se), None)
        if self.gate is not None and gated is not None and self.attention is not False:
            known = declared(Placement(self.gate(gated, 8, jax.nn.relu)).example(), "namings")
            inner = known.get("timm_efficientnet", known["timm"])
            renames += renames_below("se", inner)
        return tuple(renames)

    def _torchvision(self) -> Renames:
        """torchvision's Sequentials: convolutions with their norms, and what stands between."""
        layout = self.torchvision
        nested = layout == "efficientnet"
        renames: list[tuple[str, ...]] = [
            ("features.0.0", "conv_stem"),
            ("features.0.1", "bn1"),
        ]
        index = 0
        for stage, rows in enumerate(self.stages):
            for block, spec in enumerate(rows):
                index += 1
                prefix = f"features.{stage + 1}.{block}" if nested else f"features.{index}"
                if spec.kind != "conv" or nested:
                    prefix += ".conv" if layout == "mobilenet_v2" else ".block"
                ours = f"blocks_{stage}_{block}"
                for theirs, layer in self._torchvision_block(spec):
                    renames.append((f"{prefix}.{theirs}".rstrip("."), f"{ours}.{layer}"))
        last = len(self.stages) + 1 if nested else index + 1
        if self.head == "pool_first":
            renames += [("classifier.0", "conv_head", "linear"), ("classifier.3", "classifier")]
        else:
            renames += [(f"features.{last}.0", "conv_head"), (f"features.{last}.1", "bn2")]
            renames += [("classifier.1", "classifier")]
        return tuple(renames)

    def _torchvision_block(self, spec: BlockSpec) -> Iterator[tuple[str, str]]:
        """torchvision's numbers of a block's layers, and our names."""
        convs = CONVS[spec.kind]
        number = 0
        for index, (name, task) in enumerate(convs, start=1):
            if spec.kind == "conv" and self.torchvision != "efficientnet":
                numbers = ("0", "1")
            elif self.torchvision == "mobilenet_v2" and index == len(convs):
                numbers = (f"{number}", f"{number + 1}")
            else:
                numbers = (f"{number}.0", f"{number}.1")
            yield from zip(numbers, (name, f"bn{index}"), strict=True)
            number += 1
            if spec.se and task in MIDDLE:
                yield str(number), "se"
                number += 1
