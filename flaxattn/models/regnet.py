"""RegNets: residual networks whose widths lie on a line."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention import SqueezeExcite
from flaxattn.attention.mechanism import LayerFactory
from flaxattn.errors import InputError, require_count, require_rate, unknown
from flaxattn.layers.conv import Conv, Initializer, kaiming_fan_out
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.widths import make_divisible
from flaxattn.models.head import GLOBAL_POOLS, Classifier
from flaxattn.models.placement import Placement, namings, place
from flaxattn.models.residual_block import Bottleneck

_CONVS = ("conv1", "conv2", "conv3")


class RegNetBottleneck(Bottleneck):
    """A `Bottleneck` that is as wide in the middle as at its ends; Radosavovic et al., Fig. 4."""

    expansion: ClassVar[int] = 1

    @property
    def middle_width(self) -> int:
        return self.width


class RegNet(nn.Module):
    """Four stages of residual blocks, each of one width, from four numbers.

    Radosavovic, Kosaraju, Girshick, He, Dollar, "Designing Network Design Spaces", CVPR 2020,
    arXiv:2003.13678; numerically timm's RegNetX and, with `se`, RegNetY.

    Block j of `depth` would have the width u_j = initial_width + width_slope * j (Eq. 2). Widths
    are the powers of `width_step` times initial_width that come nearest to it (Eq. 3, 4), in
    multiples of 8 and then of the groups' size. Blocks of one width are a stage, and the first of
    each has strides 2.

    images (N, H, W, C) -> logits (N, num_classes), or pooled features if num_classes is 0, both
    float32 or wider. `features` answers the maps after the stem and after each stage.

    Fields:
        depth: number of blocks.
        initial_width, width_slope, width_step: the paper's w_0, w_a and w_m.
        group_size: channels of each group of the 3x3 convolutions, at most the width.
        round_limit: how much of its width rounding to whole groups may leave; by default it rounds
            to the nearest. 0.9 is torchvision's, timm's *_tv.
        se: width of the squeeze-and-excitation after each 3x3 convolution, as a share of the
            channels of the block's input; 0 for none.
        num_classes: width of the last layer; 0 leaves it out.
        stem_width: channels of the 3x3 convolution with strides 2 before the stages.
        global_pool: "avg", "max", "avgmax" or "catavgmax".
        dropout: how likely a feature before the last layer is left out in train mode.
        drop_path: likewise the last block's residual branch, for a whole sample; the first one's
            never, with linear growth between.
        zero_init_last: start each residual branch's last norm at zero.
        attention: None for the architecture's own (`se`), False for none, or layers in the residual
            branches, in any form `placement.place` takes, in the place of the own one where there
            is one. Usually at position "mid", after the 3x3 convolution.
        context: after the add, named `context`, likewise.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        kernel_init: of the convolutions.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train).

    Raises InputError when constructed with numbers that make no four stages, an unknown pool,
    negative `num_classes` or `se`, rates outside [0, 1), or a slot `place` refuses, `share`
    included, for a stage's first block has other channels inside.
    """

    depth: int
    initial_width: int
    width_slope: float
    width_step: float
    group_size: int
    round_limit: float = 0.0
    se: float = 0.0
    num_classes: int = 1000
    stem_width: int = 32
    global_pool: str = "avg"
    dropout: float = 0.0
    drop_path: float = 0.0
    zero_init_last: bool = False
    attention: Any = None
    context: Any = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = kaiming_fan_out
    norm: Callable[..., nn.Module] = BatchNorm

    head_name: ClassVar[str] = "head_fc"

    def __post_init__(self) -> None:
        if self.global_pool not in GLOBAL_POOLS:
            raise unknown("global_pool", self.global_pool, GLOBAL_POOLS)
        require_count("num_classes", self.num_classes, 0)
        if self.se < 0:
            raise InputError(f"se={self.se} is below 0: use 0 or more.")
        for field in ("dropout", "drop_path"):
            require_rate(field, getattr(self, field))
        for field in ("depth", "initial_width", "group_size", "stem_width"):
            require_count(field, getattr(self, field), 1)
        if self.width_step <= 1 or self.width_slope < 0:
            raise InputError(
                f"width_step={self.width_step} and width_slope={self.width_slope}: use a step "
                f"above 1 and a slope of at least 0."
            )
        sizes = [size for _, size in self.stages]
        if self.attention is not False:
            self.attention = place(
                "attention",
                self.attention,
                sizes,
                positions=("mid", "out"),
                gated=bool(self.se),
                shareable=False,
            )
        self.context = place("context", self.context, sizes, shareable=False)
        super().__post_init__()

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """The width of each stage, and its number of blocks."""
        exact = self.initial_width + self.width_slope * np.arange(self.depth, dtype=np.float32)
        powers = np.round(np.log(exact / self.initial_width) / math.log(self.width_step))
        widths = np.round(self.initial_width * np.power(self.width_step, powers) / 8) * 8
        found, sizes = np.unique(widths.astype(int), return_counts=True)
        return tuple(
            (self._whole_groups(int(w)), int(n)) for w, n in zip(found, sizes, strict=True)
        )

    def _whole_groups(self, width: int) -> int:
        size = min(self.group_size, width)
        if self.round_limit:
            return make_divisible(width, size, round_limit=self.round_limit)
        return round(width / size) * size

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `features`."""
        return (self.stem_width, *(width for width, _ in self.stages))

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the image to one of each map of `features`, along either axis."""
        return tuple(2 ** (i + 1) for i in range(len(self.stages) + 1))

    @property
    def namings(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """timm's names, and the renames of the slots' layers by source name."""
        slots = {"se": self.attention or None, "context": self.context}
        tables = namings(slots)
        own = [("stem.conv", "stem_conv"), ("stem.bn", "stem_bn"), ("head.fc", "head_fc")]
        for stage, (_, size) in enumerate(self.stages, start=1):
            for block in range(size):
                theirs, ours = f"s{stage}.b{block + 1}", f"s{stage}_{block}"
                own.append((theirs, ours))
                own += [(f"{theirs}.{conv}.conv", f"{ours}.{conv}") for conv in _CONVS]
                own += [(f"{theirs}.conv{i}.bn", f"{ours}.bn{i}") for i in (1, 2, 3)]
                own.append((f"{theirs}.downsample.conv", f"{ours}.downsample_0"))
                own.append((f"{theirs}.downsample.bn", f"{ours}.downsample_1"))
        return tables | {"timm": (*tables.get("timm", ()), *own)}

    def setup(self) -> None:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: LayerFactory = functools.partial(
            Conv, use_bias=False, kernel_init=self.kernel_init, **dtypes
        )
        norm = functools.partial(self.norm, **dtypes)
        self.stem_conv = conv(self.stem_width, 3, strides=2)
        self.stem_bn = norm()
        before = self.stem_width
        for stage, (width, size) in enumerate(self.stages, start=1):
            blocks = []
            for block in range(size):
                blocks.append(self._block(stage, block, before, conv, norm))
                before = width
            setattr(self, f"s{stage}", blocks)
        self.drop = nn.Dropout(self.dropout)
        if self.num_classes:
            self.head_fc = Classifier(
                self.num_classes,
                param_dtype=self.param_dtype,
                kernel_init=nn.initializers.normal(0.01),
            )

    def __call__(self, images: Array, train: bool = False) -> Array:
        pooled = GLOBAL_POOLS[self.global_pool](self.features(images, train)[-1])
        if not self.num_classes:
            return pooled
        return self.head_fc(self.drop(pooled, deterministic=not train))

    def features(self, images: Array, train: bool = False) -> list[Array]:
        """The maps after the stem and each stage, `feature_strides` times smaller, rounded up.

        Call it as `model.apply(variables, images, method="features")`.
        """
        x = jax.nn.relu(self.stem_bn(self.stem_conv(images), train))
        maps = [x]
        for stage in range(1, len(self.stages) + 1):
            for block in getattr(self, f"s{stage}"):
                x = block(x, train)
            maps.append(x)
        return maps

    def _block(
        self, stage: int, block: int, features: int, conv: LayerFactory, norm: LayerFactory
    ) -> nn.Module:
        """Block `block` of stage `stage`, for maps of so many features."""
        width, size = self.stages[stage - 1]
        index = sum(size for _, size in self.stages[: stage - 1]) + block
        attention, context = self._own(features), self.context
        if self.attention and self.attention.covers(stage, block, size, gated=bool(self.se)):
            attention = self.attention
        if context is not None and not context.covers(stage, block, size):
            context = None
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return RegNetBottleneck(
            width=width,
            strides=2 if block == 0 else 1,
            conv=conv,
            norm=norm,
            attention=attention.with_defaults(**dtypes) if attention is not None else None,
            position=attention.position if attention is not None else "mid",
            context=context.with_defaults(**dtypes) if context is not None else None,
            groups=width // min(self.group_size, width),
            drop_path=self.drop_path * index / max(self.depth - 1, 1),
            zero_init_last=self.zero_init_last,
        )

    def _own(self, features: int) -> Placement | None:
        """The architecture's squeeze-and-excitation in a block whose input has `features`."""
        if not self.se or self.attention is False:
            return None
        layer = functools.partial(SqueezeExcite.timm, hidden_features=round(features * self.se))
        return Placement(layer, position="mid")


def _regnet(
    depth: int, initial_width: int, width_slope: float, width_step: float, group_size: int
) -> dict[str, Any]:
    return {
        "depth": depth,
        "initial_width": initial_width,
        "width_slope": width_slope,
        "width_step": width_step,
        "group_size": group_size,
    }


_TV = {"round_limit": 0.9}  # rounded as torchvision does
_X = {
    "002": _regnet(13, 24, 36.44, 2.49, 8),
    "004": _regnet(22, 24, 24.48, 2.54, 16),
    "006": _regnet(16, 48, 36.97, 2.24, 24),
    "008": _regnet(16, 56, 35.73, 2.28, 16),
    "016": _regnet(18, 80, 34.01, 2.25, 24),
    "032": _regnet(25, 88, 26.31, 2.25, 48),
    "040": _regnet(23, 96, 38.65, 2.43, 40),
    "064": _regnet(17, 184, 60.83, 2.07, 56),
    "080": _regnet(23, 80, 49.56, 2.88, 120),
    "120": _regnet(19, 168, 73.36, 2.37, 112),
    "160": _regnet(22, 216, 55.59, 2.1, 128),
    "320": _regnet(23, 320, 69.86, 2.0, 168),
}
_Y = {
    "002": _regnet(13, 24, 36.44, 2.49, 8),
    "004": _regnet(16, 48, 27.89, 2.09, 8),
    "006": _regnet(15, 48, 32.54, 2.32, 16),
    "008": _regnet(14, 56, 38.84, 2.4, 16),
    "016": _regnet(27, 48, 20.71, 2.65, 24),
    "032": _regnet(21, 80, 42.63, 2.66, 24),
    "040": _regnet(22, 96, 31.41, 2.24, 64),
    "064": _regnet(25, 112, 33.22, 2.27, 72),
    "080": _regnet(17, 192, 76.82, 2.19, 56),
    "120": _regnet(19, 168, 73.36, 2.37, 112),
    "160": _regnet(18, 200, 106.23, 2.48, 112),
    "320": _regnet(20, 232, 115.89, 2.53, 232),
    "640": _regnet(20, 352, 147.48, 2.4, 328),
    "1280": _regnet(27, 456, 160.83, 2.52, 264),
    "2560": _regnet(27, 640, 230.83, 2.53, 373),
}

# Names as in timm: the number is of 10 million multiply-adds at 224 pixels.
REGNETS: dict[str, dict[str, Any]] = {
    **{f"regnetx_{name}": fields for name, fields in _X.items()},
    "regnetx_004_tv": _X["004"] | _TV,
    **{f"regnety_{name}": fields | {"se": 0.25} for name, fields in _Y.items()},
    "regnety_008_tv": _Y["008"] | {"se": 0.25} | _TV,
    "regnety_080_tv": _Y["080"] | {"se": 0.25} | _TV,
}
