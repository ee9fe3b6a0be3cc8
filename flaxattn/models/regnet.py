"""RegNets: residual networks whose widths lie on a line."""

import functools
import math
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from jax import Array

from flaxattn.attention import SqueezeExcite
from flaxattn.attention.mechanism import LayerFactory, Namings
from flaxattn.errors import InputError, require_least
from flaxattn.layers.conv import Conv, Initializer, kaiming_fan_out
from flaxattn.layers.fields import require_types
from flaxattn.layers.widths import make_divisible
from flaxattn.models.placement import Placement, Places, with_others
from flaxattn.models.residual_backbone import ResidualBackbone
from flaxattn.models.residual_block import Bottleneck


class RegNetBottleneck(Bottleneck):
    """A `Bottleneck` that is as wide in the middle as at its ends; Radosavovic et al., Fig. 4."""

    expansion: ClassVar[int] = 1

    @property
    def middle_width(self) -> int:
        return self.width


class RegNet(ResidualBackbone):
    """Four stages of residual blocks, each of one width, from four numbers.

    Radosavovic, Kosaraju, Girshick, He, Dollar, "Designing Network Design Spaces", CVPR 2020,
    arXiv:2003.13678; numerically timm's RegNetX and, with `se`, RegNetY, and torchvision's where
    both round to the same widths. Where they do not, torchvision's is the one called *_tv.

    Block j of `depth` would have the width u_j = initial_width + width_slope * j (Eq. 2). Widths
    are the powers of `width_step` times initial_width that come nearest to it (Eq. 3, 4), in
    multiples of 8 and then of the groups' size. Blocks of one width are a stage, and the first of
    each has strides 2.

    Fields, beside those of `ResidualBackbone`:
        depth: number of blocks.
        initial_width, width_slope, width_step: the paper's w_0, w_a and w_m.
        group_size: channels of each group of the 3x3 convolutions, at most the width.
        round_limit: how much of its width rounding to whole groups may leave; by default it rounds
            to the nearest. 0.9 is torchvision's.
        se: width of the squeeze-and-excitation after each 3x3 convolution, as a share of the
            channels of the block's input; 0 for none.
        stem_width: channels of the 3x3 convolution with strides 2 before the stages.
        zero_init_last: start each residual branch's last norm at zero.
        attention: None for the architecture's own (`se`), False for none, or layers in the residual
            branches, in the place of the own one where there is one. Usually at position "mid",
            after the 3x3 convolution.
        kernel_init: of the convolutions.

    Raises InputError also for numbers that make no stages, and for `share` in a slot, for a stage's
    first block has other channels inside.
    """

    depth: int
    initial_width: int
    width_slope: float
    width_step: float
    group_size: int
    round_limit: float = 0.0
    se: float = 0.0
    stem_width: int = 32
    zero_init_last: bool = False
    kernel_init: Initializer = kaiming_fan_out

    head_name: ClassVar[str] = "head_fc"
    free_fields: ClassVar[frozenset[str]] = ResidualBackbone.free_fields | {
        "kernel_init",
        "zero_init_last",
    }

    def __post_init__(self) -> None:
        require_types(self)
        require_least("se", self.se, 0)
        for field in ("depth", "group_size", "stem_width"):
            require_least(field, getattr(self, field), 1)
        require_least("initial_width", self.initial_width, 8)
        if self.width_step <= 1 or self.width_slope < 0:
            raise InputError(
                f"width_step={self.width_step} and width_slope={self.width_slope}: use a step "
                f"above 1 and a slope of at least 0."
            )
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
    def places(self) -> Places:
        sizes = [size for _, size in self.stages]
        every = ((stage, b) for stage, size in enumerate(sizes, start=1) for b in range(size))
        gated = frozenset(every if self.se else ())
        return Places(sizes, ("mid", "out"), gated=gated, shareable=False)

    @property
    def levels(self) -> list[tuple[int, int]]:
        return [(self.stem_width, 2), *((width, 2) for width, _ in self.stages)]

    @property
    def namings(self) -> Namings:
        """timm's and torchvision's names, and the renames of the slots' layers by source name."""
        timm = [("stem.conv", "stem_conv"), ("stem.bn", "stem_bn"), ("head.fc", "head_fc")]
        torchvision = [("stem.0", "stem_conv"), ("stem.1", "stem_bn"), ("fc", "head_fc")]
        for stage, size in enumerate(self.sizes, start=1):
            for block in range(size):
                ours = f"s{stage}_{block}"
                theirs = f"s{stage}.b{block + 1}"
                timm.append((theirs, ours))
                timm += [(f"{theirs}.conv{i}.conv", f"{ours}.conv{i}") for i in (1, 2, 3)]
                timm += [(f"{theirs}.conv{i}.bn", f"{ours}.bn{i}") for i in (1, 2, 3)]
                timm.append((f"{theirs}.downsample.conv", f"{ours}.downsample_0"))
                timm.append((f"{theirs}.downsample.bn", f"{ours}.downsample_1"))
                theirs = f"trunk_output.block{stage}.block{stage}-{block}"
                torchvision += [(theirs, ours), (f"{theirs}.f.se", f"{ours}.se")]
                for number, letter in enumerate("abc", start=1):
                    torchvision.append((f"{theirs}.f.{letter}.0", f"{ours}.conv{number}"))
                    torchvision.append((f"{theirs}.f.{letter}.1", f"{ours}.bn{number}"))
                torchvision += [(f"{theirs}.proj.{i}", f"{ours}.downsample_{i}") for i in (0, 1)]
        own = {"timm": tuple(timm), "torchvision": tuple(torchvision)}
        return with_others(own, self.slot_namings())

    def setup(self) -> None:
        self.stem_conv = self.make_conv(self.stem_width, 3, strides=2)
        self.stem_bn = self.make_norm()
        self.add_stages()
        self.add_classifier(nn.initializers.normal(0.01))

    @property
    def make_conv(self) -> LayerFactory:
        """Makes a convolution from (features, kernel_size, strides=, dilation=, groups=, name=)."""
        return functools.partial(Conv, use_bias=False, kernel_init=self.kernel_init, **self.dtypes)

    def stage_name(self, stage: int) -> str:
        return f"s{stage}"

    def stem_layers(self, images: Array, train: bool) -> Array:
        return jax.nn.relu(self.stem_bn(self.stem_conv(images), train))

    def make_block(self, stage: int, block: int) -> nn.Module:
        width = self.stages[stage - 1][0]
        own = None
        if self.se and self.attention is not False:
            features = self.levels[stage if block else stage - 1][0]  # of the block's input
            squeeze = functools.partial(
                SqueezeExcite.timm, hidden_features=round(features * self.se)
            )
            own = Placement(squeeze, position="mid")
        return RegNetBottleneck(
            width=width,
            **self.block_steps(stage, block)._asdict(),
            conv=self.make_conv,
            norm=self.make_norm,
            groups=width // min(self.group_size, width),
            zero_init_last=self.zero_init_last,
            **self.block_fields(stage, block, own),
        )


def _regnet(*numbers: float) -> dict[str, Any]:
    names = ("depth", "initial_width", "width_slope", "width_step", "group_size")
    return dict(zip(names, numbers, strict=True))


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
