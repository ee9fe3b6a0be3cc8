"""MobileNets, EfficientNets and their kin: one network, made from a table of blocks."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention import GlobalContext, SqueezeExcite
from flaxattn.attention.mechanism import LayerFactory
from flaxattn.errors import InputError, require_count, require_rate, unknown
from flaxattn.layers.conv import Conv
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import make_divisible
from flaxattn.models.block_spec import BlockSpec, Stages, expand, row
from flaxattn.models.head import GLOBAL_POOLS, Classifier
from flaxattn.models.inverted_residual import BLOCKS, fan_out_of, pad_same
from flaxattn.models.placement import Placement, namings, place

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "silu": jax.nn.silu,
}
HEADS = ("conv_first", "pool_first")
PADDINGS = ("symmetric", "same")


# What makes a block's own attention, from its row, the channels inside it, and its activation.
Gate = Callable[[BlockSpec, int, Callable[[Array], Array]], LayerFactory]


def squeeze_input(
    spec: BlockSpec, channels: int, activation: Callable[[Array], Array]
) -> LayerFactory:
    """EfficientNet's squeeze-and-excitation: `se` is a share of the block's input channels."""
    hidden = round(channels * (spec.se / spec.expansion))
    return functools.partial(
        SqueezeExcite.efficientnet, hidden_features=hidden, activation=activation
    )


def squeeze_inside(
    spec: BlockSpec, channels: int, _activation: Callable[[Array], Array]
) -> LayerFactory:
    """MobileNetV3's: a share of the channels inside the block, in eights; ReLU, hard sigmoid."""
    hidden = make_divisible(channels * spec.se, 8)
    return functools.partial(SqueezeExcite.mobilenet_v3, hidden_features=hidden)


def pool_context(
    spec: BlockSpec, _channels: int, activation: Callable[[Array], Array]
) -> LayerFactory:
    """timm's global context, of the width that squeeze-and-excitation has."""
    return functools.partial(
        GlobalContext.timm, reduction=round(spec.expansion / spec.se), activation=activation
    )


class InvertedResidualNet(nn.Module):
    """MobileNet, EfficientNet or one of their kin, as its table says; timm's, by its names.

    Howard et al. 2017, arXiv:1704.04861; Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019,
    arXiv:1905.02244; Tan and Le, arXiv:1905.11946 and arXiv:2104.00298; the tables of the others
    name theirs.

    images (N, H, W, C) -> logits (N, num_classes), or what the classifier would see if num_classes
    is 0, both float32 or wider. `features` answers the last map at each stride.

    Fields:
        stages: the table: a tuple of rows, `BlockSpec`, for each stage.
        stem_features, stem_kernel_size: of the first convolution, which has strides 2.
        head_features: of the last convolution, a 1x1; 0 leaves it out.
        head: "conv_first", 1x1 convolution, norm, activation, pool (EfficientNet); or "pool_first",
            pool, 1x1 convolution with a bias if `head_bias`, activation (MobileNetV3).
        activation: a key of ACTIVATIONS.
        gate: makes the attention of the blocks whose row has `se`.
        padding: "symmetric", as in torch; or "same", TensorFlow's, which puts the odd row and
            column of zeros of a convolution with strides below and on the right.
        torchvision: how torchvision numbers the layers, if it has the network: "efficientnet",
            "mobilenet_v2" or "mobilenet_v3". Its weights then load as naming="torchvision".
        num_classes: width of the last layer, `classifier`; 0 leaves it out.
        global_pool: "avg", "max", "avgmax", their mean, or "catavgmax", one after the other.
        dropout: rate of dropout before the classifier, in train mode.
        drop_path: how likely the last block's residual branch is left out of a sample in train
            mode; from block to block it grows linearly from 0. Both draw from the rng "dropout".
        attention: None, the architecture's own; False, none at all; or what stands in its place, in
            any form `placement.place` takes, as `se` inside the residual branch. Without `blocks`
            that is in the blocks that have squeeze-and-excitation, or in all, where no block has;
            with blocks="all" in the others too. Blocks that are not chosen keep their own. At
            position "mid", the usual one, it sees the map inside the block, expanded, before the
            projection; at "out" the block's answer before the add.
        context: after the add, named `context`, likewise.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train).

    Convolutions start as N(0, 2 / fan_out) with the fan-out of one group, the classifier as
    U(-1/sqrt(num_classes), 1/sqrt(num_classes)), as in TensorFlow's code.

    Raises InputError when constructed with unknown kinds, heads, paddings, pools or activations, a
    table without blocks, rates outside [0, 1), negative `num_classes`, or a slot `place` refuses,
    `share` included, for the blocks of a stage differ in width; and when called, for a layer that
    changes the shape of its map.
    """

    stages: Stages
    stem_features: int = 32
    stem_kernel_size: int = 3
    head_features: int = 1280
    head: str = "conv_first"
    head_bias: bool = True
    activation: str = "relu"
    gate: Gate = squeeze_input
    padding: str = "symmetric"
    torchvision: str | None = None
    num_classes: int = 1000
    global_pool: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0
    attention: Any = None
    context: Any = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    norm: Callable[..., nn.Module] = BatchNorm

    head_name: ClassVar[str] = "classifier"

    def __post_init__(self) -> None:
        self.stages = expand(tuple(tuple(map(row, stage)) for stage in self.stages))
        self._require_legal_fields()
        sizes = [len(stage) for stage in self.stages]
        if self.attention is not False:
            gated = any(spec.se for stage in self.stages for spec in stage)
            self.attention = place(
                "attention",
                self.attention,
                sizes,
                positions=("mid", "out"),
                gated=gated,
                shareable=False,
            )
        self.context = place("context", self.context, sizes, shareable=False)
        super().__post_init__()

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `features`."""
        ends = [self.stem_features, *(stage[-1].features for stage in self.stages)]
        return tuple(ends[index] for index in self._ends())

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the image to one of each map of `features`, along either axis."""
        return tuple(2 ** (level + 1) for level in range(len(self._ends())))

    @property
    def namings(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """The renames of timm's and torchvision's weights, and of the slots' layers."""
        tables: dict[str, tuple[tuple[str, ...], ...]] = {"timm": self._timm()}
        if self.torchvision is not None:
            tables["torchvision"] = self._torchvision()
        slots = {"se": self.attention or None, "context": self.context}
        for source, renames in namings(slots).items():
            known = {ours for _, ours, *_ in tables.get(source, ())}
            new = tuple(rename for rename in renames if rename[1] not in known)
            tables[source] = (*tables.get(source, ()), *new)
        return tables

    def setup(self) -> None:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = functools.partial(self.norm, **dtypes)
        conv: LayerFactory = functools.partial(Conv, kernel_init=fan_out_of(1), **dtypes)
        self.conv_stem = conv(
            self.stem_features,
            self.stem_kernel_size,
            strides=2,
            padding=0 if self.padding == "same" else None,
            use_bias=False,
        )
        self.bn1 = norm()
        self.blocks = [
            [self._block(stage, block, norm) for block in range(len(self.stages[stage]))]
            for stage in range(len(self.stages))
        ]
        if self.head_features:
            pool_first = self.head == "pool_first"
            self.conv_head = conv(self.head_features, use_bias=pool_first and self.head_bias)
            if not pool_first:
                self.bn2 = norm()
        self.drop = nn.Dropout(self.dropout)
        if self.num_classes:
            self.classifier = Classifier(
                self.num_classes,
                param_dtype=self.param_dtype,
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
            )

    def __call__(self, images: Array, train: bool = False) -> Array:
        x = self.features(images, train)[-1]
        activation, pool = ACTIVATIONS[self.activation], GLOBAL_POOLS[self.global_pool]
        if self.head == "pool_first":
            x = pool(x)[:, None, None, :].astype(x.dtype)
            if self.head_features:
                x = activation(self.conv_head(x))
            x = x[:, 0, 0, :].astype(at_least_float32(x.dtype))
        else:
            if self.head_features:
                x = activation(self.bn2(self.conv_head(x), train))
            x = pool(x)
        if not self.num_classes:
            return x
        return self.classifier(self.drop(x, deterministic=not train))

    def features(self, images: Array, train: bool = False) -> list[Array]:
        """The last map at each stride, `feature_strides` times smaller than the images, rounded up.

        Call it as `model.apply(variables, images, method="features")`.
        """
        x = images
        if self.padding == "same":
            x = pad_same(x, self.stem_kernel_size, 2)
        x = ACTIVATIONS[self.activation](self.bn1(self.conv_stem(x), train))
        maps = [x]
        for stage in self.blocks:
            for block in stage:
                x = block(x, train)
            maps.append(x)
        return [maps[index] for index in self._ends()]

    def _ends(self) -> list[int]:
        """Which stages end a stride, counted from 1, and 0 for the stem."""
        count = len(self.stages)
        return [end for end in range(count) if self.stages[end][0].strides > 1] + [count]

    def _block(self, stage: int, block: int, norm: LayerFactory) -> nn.Module:
        spec, size = self.stages[stage][block], len(self.stages[stage])
        rows = [spec for stage in self.stages for spec in stage]
        index = sum(len(stage) for stage in self.stages[:stage]) + block
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        activation = ACTIVATIONS[spec.activation or self.activation]

        own = None
        if spec.se and self.attention is not False:
            features = rows[index - 1].features if index else self.stem_features
            factory = self.gate(spec, spec.inner_features(features), activation)
            own = Placement(factory, position="mid")
        chosen: Placement | None = self.attention or None
        if chosen is None or not chosen.covers(stage + 1, block, size, gated=bool(spec.se)):
            chosen = own
        context: Placement | None = self.context
        if context is not None and not context.covers(stage + 1, block, size):
            context = None
        return BLOCKS[spec.kind](
            spec=spec,
            activation=activation,
            norm=norm,
            padding=self.padding,
            attention=chosen.with_defaults(**dtypes) if chosen is not None else None,
            position=chosen.position if chosen is not None else "mid",
            context=context.with_defaults(**dtypes) if context is not None else None,
            drop_path=self.drop_path * index / len(rows),
            **dtypes,
        )

    def _timm(self) -> tuple[tuple[str, ...], ...]:
        """The parts of the blocks whose names are not timm's here."""
        renames: list[tuple[str, ...]] = []
        if any(spec.experts for stage in self.stages for spec in stage):
            for name in ("conv_pw", "conv_dw", "conv_pwl"):
                renames.append((f"{name}.weight", f"{name}.kernels", "flat"))
        for layer in self._own_layers():
            inner = layer.namings.get("timm_efficientnet", layer.namings["timm"])
            renames += [(f"se.{theirs}", f"se.{ours}", *kind) for theirs, ours, *kind in inner]
        return tuple(renames)

    def _own_layers(self) -> set[Any]:
        """The classes of the architecture's own attention."""
        if self.attention is False:
            return set()
        rows = [spec for stage in self.stages for spec in stage if spec.se]
        return {Placement(self.gate(spec, 8, jax.nn.relu)).layer for spec in rows}

    def _torchvision(self) -> tuple[tuple[str, ...], ...]:
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
        layers = BLOCKS[spec.kind].layers
        if spec.kind == "conv" and self.torchvision != "efficientnet":
            yield from zip(("0", "1"), layers, strict=True)
            return
        number = 0
        while layers:
            first, *rest = layers
            if first == "se":
                if spec.se:
                    yield str(number), first
                    number += 1
                layers = tuple(rest)
                continue
            bare = self.torchvision == "mobilenet_v2" and len(rest) == 1
            numbers = (f"{number}", f"{number + 1}") if bare else (f"{number}.0", f"{number}.1")
            yield from zip(numbers, (first, rest[0]), strict=True)
            number += 1
            layers = tuple(rest[1:])

    def _require_legal_fields(self) -> None:
        if not self.stages or not all(self.stages):
            raise InputError(
                f"stages={self.stages} makes no network: use a row or more for each of one or "
                f"more stages."
            )
        rows = [spec for stage in self.stages for spec in stage]
        choices: list[tuple[str, object, Any]] = [
            ("head", self.head, HEADS),
            ("padding", self.padding, PADDINGS),
            ("global_pool", self.global_pool, GLOBAL_POOLS),
            ("activation", self.activation, ACTIVATIONS),
            *(("activation", spec.activation or self.activation, ACTIVATIONS) for spec in rows),
            *(("kind", spec.kind, BLOCKS) for spec in rows),
        ]
        for kind, name, known in choices:
            if name not in known:
                raise unknown(kind, name, known)
        for field, least in (("stem_features", 1), ("head_features", 0), ("num_classes", 0)):
            require_count(field, getattr(self, field), least)
        for field in ("dropout", "drop_path"):
            require_rate(field, getattr(self, field))
