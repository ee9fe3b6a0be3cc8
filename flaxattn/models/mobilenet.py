"""Tables of MobileNets and of the searched networks for telephones; rows as in `BlockSpec`.

A row says features, kernel size, strides and expansion; the strides are those of its first block.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.widths import make_divisible
from flaxattn.models.block_spec import (
    BlockSpec,
    Stages,
    conv,
    edge,
    inverted,
    scale_depth,
    scale_width,
    separable,
)
from flaxattn.models.gates import (
    squeeze_as_block,
    squeeze_fbnet,
    squeeze_input,
    squeeze_inside,
    squeeze_plain,
)
from flaxattn.models.inverted_residual_net import InvertedResidualNet

Model = Callable[..., nn.Module]

# TensorFlow's epsilon, and torchvision's momentum beside it.
TF_NORM = functools.partial(BatchNorm, epsilon=1e-3)
TORCHVISION_TF_NORM = functools.partial(BatchNorm, epsilon=1e-3, momentum=0.99)
# What the ports of weights that were trained with TensorFlow differ in.
TF: dict[str, Any] = {"norm": TF_NORM, "padding": "same"}


def scaled(
    stages: Stages,
    width: float = 1.0,
    depth: float | Sequence[float] = 1.0,
    *,
    rounding: Callable[[float], int] = math.ceil,
    fix_ends: bool = False,
    round_limit: float = 0.9,
    **fields: Any,
) -> Model:
    """The network of a table with `width` times its channels and `depth` times its blocks.

    Rounding is as in `scale_depth` and `scale_width`; `fields` are the network's others.
    """
    deep = scale_depth(stages, depth, rounding=rounding, fix_ends=fix_ends)
    wide = scale_width(deep, width, round_limit=round_limit)
    return functools.partial(
        InvertedResidualNet, **{"stages": wide, "gate": squeeze_input, **fields}
    )


# --- MobileNet, Howard et al. 2017, arXiv:1704.04861, table 1

_bare = functools.partial(separable, project_activation=True, skip=False)

MOBILENET_V1: Stages = (
    (_bare(64, 3, 1),),
    (_bare(128, 3, 2, repeats=2),),
    (_bare(256, 3, 2, repeats=2),),
    (_bare(512, 3, 2, repeats=6),),
    (_bare(1024, 3, 2, repeats=2),),
)


def _mobilenet_v1(width: float, head_features: int = 0) -> Model:
    return scaled(
        MOBILENET_V1,
        width,
        stem_features=make_divisible(32 * width, 8),
        head_features=head_features,
        activation="relu6",
    )


# --- MobileNetV2, Sandler et al. 2018, arXiv:1801.04381, table 2

MOBILENET_V2: Stages = (
    (separable(16, 3, 1),),
    (inverted(24, 3, 2, 6, repeats=2),),
    (inverted(32, 3, 2, 6, repeats=3),),
    (inverted(64, 3, 2, 6, repeats=4),),
    (inverted(96, 3, 1, 6, repeats=3),),
    (inverted(160, 3, 2, 6, repeats=3),),
    (inverted(320, 3, 1, 6),),
)


def _mobilenet_v2(width: float = 1.0, depth: float = 1.0, fix_ends: bool = False) -> Model:
    """`fix_ends`: stem and head keep their width, the first and the last stage their depth."""
    factor = 1.0 if fix_ends else width
    return scaled(
        MOBILENET_V2,
        width,
        depth,
        fix_ends=fix_ends,
        stem_features=make_divisible(32 * factor, 8),
        head_features=max(1280, make_divisible(1280 * factor, 8)),
        activation="relu6",
        torchvision="mobilenet_v2",
    )


# --- MobileNetV3, Howard et al. 2019, arXiv:1905.02244, tables 1 and 2

MOBILENET_V3_LARGE: Stages = (
    (separable(16, 3, 1, activation="relu"),),
    (inverted(24, 3, 2, 4, activation="relu"), inverted(24, 3, 1, 3, activation="relu")),
    (inverted(40, 5, 2, 3, repeats=3, se=0.25, activation="relu"),),
    (inverted(80, 3, 2, 6), inverted(80, 3, 1, 2.5), inverted(80, 3, 1, 2.3, repeats=2)),
    (inverted(112, 3, 1, 6, repeats=2, se=0.25),),
    (inverted(160, 5, 2, 6, repeats=3, se=0.25),),
    (conv(960, 1),),
)

MOBILENET_V3_SMALL: Stages = (
    (separable(16, 3, 2, se=0.25, activation="relu"),),
    (inverted(24, 3, 2, 4.5, activation="relu"), inverted(24, 3, 1, 3.67, activation="relu")),
    (inverted(40, 5, 2, 4, se=0.25), inverted(40, 5, 1, 6, repeats=2, se=0.25)),
    (inverted(48, 5, 1, 3, repeats=2, se=0.25),),
    (inverted(96, 5, 2, 6, repeats=3, se=0.25),),
    (conv(576, 1),),
)


def minimal(stages: Stages) -> Stages:
    """Without squeeze-and-excitation, hard swish and 5x5 kernels: for slow accelerators."""

    def plain(spec: BlockSpec) -> BlockSpec:
        kernel_size = 3 if spec.kernel_size == 5 else spec.kernel_size
        return spec._replace(kernel_size=kernel_size, se=0.0, activation=None)

    return tuple(tuple(map(plain, stage)) for stage in stages)


_HARD: dict[str, Any] = {
    "head": "pool_first",
    "activation": "hard_swish",
    "gate": squeeze_inside,
}


def _mobilenet_v3(
    stages: Stages, head_features: int, width: float = 1.0, depth: float = 1.0, **fields: Any
) -> Model:
    stem_features = make_divisible(16 * (width if width >= 0.75 else 1.0), 8)
    ends = {"stem_features": stem_features, "head_features": head_features}
    return scaled(stages, width, depth, **{**_HARD, **ends, **fields})


_large = functools.partial(_mobilenet_v3, MOBILENET_V3_LARGE, 1280)
_small = functools.partial(_mobilenet_v3, MOBILENET_V3_SMALL, 1024)

_RW_STAGES: Stages = (
    (separable(16, 3, 1, activation="relu", skip=False),),
    *MOBILENET_V3_LARGE[1:],
)

# --- PP-LCNet, Cui et al. 2021, arXiv:2109.15099, table 1

LCNET: Stages = (
    (_bare(32, 3, 1),),
    (_bare(64, 3, 2, repeats=2),),
    (_bare(128, 3, 2, repeats=2),),
    (_bare(256, 3, 2), _bare(256, 5, 1)),
    (_bare(256, 5, 1, repeats=4),),
    (_bare(512, 5, 2, repeats=2, se=0.25),),
)


def _lcnet(width: float) -> Model:
    fields = _HARD | {"gate": squeeze_plain}
    return scaled(LCNET, width, stem_features=make_divisible(16 * width, 8), **fields)


# --- FBNetV3, Dai et al. 2020, arXiv:2006.02049

FBNET_V3_B: Stages = (
    (separable(16, 3, 1, repeats=2),),
    (inverted(24, 5, 2, 4), inverted(24, 5, 1, 2, repeats=3)),
    (inverted(40, 5, 2, 5, se=0.25), inverted(40, 5, 1, 3, repeats=4, se=0.25)),
    (inverted(72, 5, 2, 5), inverted(72, 3, 1, 3, repeats=4)),
    (inverted(120, 3, 1, 5, se=0.25), inverted(120, 5, 1, 3, repeats=5, se=0.25)),
    (
        inverted(184, 3, 2, 6, se=0.25),
        inverted(184, 5, 1, 4, repeats=5, se=0.25),
        inverted(224, 5, 1, 6, se=0.25),
    ),
    (conv(1344, 1),),
)
FBNET_V3_D: Stages = (
    (separable(16, 3, 1, repeats=2),),
    (inverted(24, 3, 2, 5), inverted(24, 3, 1, 2, repeats=5)),
    (inverted(40, 5, 2, 4, se=0.25), inverted(40, 3, 1, 3, repeats=4, se=0.25)),
    (inverted(72, 3, 2, 5), inverted(72, 3, 1, 3, repeats=4)),
    (inverted(128, 3, 1, 5, se=0.25), inverted(128, 5, 1, 3, repeats=6, se=0.25)),
    (
        inverted(208, 3, 2, 6, se=0.25),
        inverted(208, 5, 1, 5, repeats=5, se=0.25),
        inverted(240, 5, 1, 6, se=0.25),
    ),
    (conv(1440, 1),),
)
FBNET_V3_G: Stages = (
    (separable(24, 3, 1, repeats=3),),
    (inverted(40, 5, 2, 4), inverted(40, 5, 1, 2, repeats=4)),
    (inverted(56, 5, 2, 4, se=0.25), inverted(56, 5, 1, 3, repeats=4, se=0.25)),
    (inverted(104, 5, 2, 5), inverted(104, 3, 1, 3, repeats=4)),
    (inverted(160, 3, 1, 5, se=0.25), inverted(160, 5, 1, 3, repeats=8, se=0.25)),
    (
        inverted(264, 3, 2, 6, se=0.25),
        inverted(264, 5, 1, 5, repeats=6, se=0.25),
        inverted(288, 5, 1, 6, repeats=2, se=0.25),
    ),
    (conv(1728, 1),),
)


def _fbnet_v3(stages: Stages, stem_features: int) -> Model:
    fields = _HARD | {"gate": squeeze_fbnet, "head_bias": False, "head_features": 1984}
    return scaled(stages, stem_features=stem_features, **fields)


# --- HardCoRe-NAS, Nayman et al. 2021, arXiv:2102.11646


def hardcore_nas(*choices: tuple[tuple[int, int, bool], ...]) -> Stages:
    """Stages 2 to 6 by each block's kernel size, expansion and whether it has attention."""
    fixed = zip((24, 40, 80, 112, 192), (2, 2, 2, 1, 2), choices, strict=True)
    return (
        (separable(16, 3, 1, activation="relu"),),
        *(
            tuple(
                inverted(
                    features,
                    kernel_size,
                    strides if block == 0 else 1,
                    expansion,
                    se=0.25 if gated else 0.0,
                    activation="relu" if features < 80 else None,
                )
                for block, (kernel_size, expansion, gated) in enumerate(stage)
            )
            for features, strides, stage in fixed
        ),
        (conv(960, 1),),
    )


_HARDCORE_NAS: dict[str, Stages] = {
    "hardcorenas_a": hardcore_nas(
        ((5, 3, False), (5, 3, True)),
        ((5, 3, False), (5, 6, True)),
        ((5, 6, True), (5, 6, True)),
        ((5, 6, True), (5, 6, True)),
        ((5, 6, True), (5, 6, True)),
    ),
    "hardcorenas_b": hardcore_nas(
        ((5, 3, False), (5, 3, True), (3, 3, False)),
        ((5, 3, False), (5, 3, False), (5, 3, False)),
        ((5, 3, False), (5, 3, False), (3, 3, False), (3, 3, False)),
        ((5, 3, False), (3, 3, False), (3, 3, False), (3, 3, False)),
        ((5, 6, True), (5, 6, True), (3, 3, True)),
    ),
    "hardcorenas_c": hardcore_nas(
        ((5, 3, False), (5, 3, True)),
        ((5, 3, False), (5, 3, False), (5, 3, False), (5, 3, False)),
        ((5, 4, False), (5, 6, True), (3, 3, False), (3, 3, False)),
        ((5, 6, True), (3, 3, False), (3, 3, False), (3, 3, False)),
        ((5, 6, True), (5, 6, True), (3, 3, True)),
    ),
    "hardcorenas_d": hardcore_nas(
        ((5, 3, True), (5, 3, True)),
        ((5, 3, True), (5, 4, True), (3, 3, True)),
        ((5, 4, True), (3, 3, True), (3, 3, True), (3, 3, True)),
        ((3, 4, True), (5, 4, True), (3, 3, True), (5, 3, True)),
        ((5, 6, True), (5, 6, True), (5, 6, True), (3, 6, True)),
    ),
    "hardcorenas_e": hardcore_nas(
        ((5, 3, True), (5, 3, True)),
        ((5, 6, True), (5, 4, True), (5, 4, True), (3, 3, True)),
        ((5, 4, True), (3, 6, True)),
        ((5, 6, True), (5, 6, True), (5, 6, True), (5, 3, True)),
        ((5, 6, True), (5, 6, True), (5, 6, True), (3, 6, True)),
    ),
    "hardcorenas_f": hardcore_nas(
        ((5, 3, True), (5, 3, True)),
        ((5, 6, True), (5, 6, True)),
        ((5, 6, True), (5, 6, True), (3, 3, True), (3, 3, True)),
        ((3, 6, True), (5, 6, True), (5, 6, True), (3, 3, True)),
        ((5, 6, True), (5, 6, True), (3, 6, True), (3, 6, True)),
    ),
}

# --- MnasNet, Tan et al. 2019, arXiv:1807.11626

MNASNET_A1: Stages = (
    (separable(16, 3, 1, skip=False),),
    (inverted(24, 3, 2, 6, repeats=2),),
    (inverted(40, 5, 2, 3, repeats=3, se=0.25),),
    (inverted(80, 3, 2, 6, repeats=4),),
    (inverted(112, 3, 1, 6, repeats=2, se=0.25),),
    (inverted(160, 5, 2, 6, repeats=3, se=0.25),),
    (inverted(320, 3, 1, 6),),
)
MNASNET_B1: Stages = (
    (separable(16, 3, 1, skip=False),),
    (inverted(24, 3, 2, 3, repeats=3),),
    (inverted(40, 5, 2, 3, repeats=3),),
    (inverted(80, 5, 2, 6, repeats=3),),
    (inverted(96, 3, 1, 6, repeats=2),),
    (inverted(192, 5, 2, 6, repeats=4),),
    (inverted(320, 3, 1, 6, skip=False),),
)
MNASNET_SMALL: Stages = (
    (separable(8, 3, 1),),
    (inverted(16, 3, 2, 3),),
    (inverted(16, 3, 2, 6, repeats=2),),
    (inverted(32, 5, 2, 6, repeats=4, se=0.25),),
    (inverted(32, 3, 1, 6, repeats=3, se=0.25),),
    (inverted(88, 5, 2, 6, repeats=3, se=0.25),),
    (inverted(144, 3, 1, 6),),
)


def _mnasnet(stages: Stages, width: float, stem_features: int = 32) -> Model:
    return scaled(stages, width, stem_features=make_divisible(stem_features * width, 8))


# --- Single-Path NAS, Stamoulis et al. 2019, arXiv:1904.02877

SPNASNET: Stages = (
    (separable(16, 3, 1, skip=False),),
    (inverted(24, 3, 2, 3, repeats=3),),
    (inverted(40, 5, 2, 6), inverted(40, 3, 1, 3, repeats=3)),
    (inverted(80, 5, 2, 6), inverted(80, 3, 1, 3, repeats=3)),
    (inverted(96, 5, 1, 6), inverted(96, 5, 1, 3, repeats=3)),
    (inverted(192, 5, 2, 6, repeats=4),),
    (inverted(320, 3, 1, 6, skip=False),),
)

# --- FBNet-C, Wu et al. 2019, arXiv:1812.03443

FBNET_C: Stages = (
    (inverted(16, 3, 1, 1),),
    (inverted(24, 3, 2, 6), inverted(24, 3, 1, 1, repeats=2)),
    (
        inverted(32, 5, 2, 6),
        inverted(32, 5, 1, 3),
        inverted(32, 5, 1, 6),
        inverted(32, 3, 1, 6),
    ),
    (inverted(64, 5, 2, 6), inverted(64, 5, 1, 3), inverted(64, 5, 1, 6, repeats=2)),
    (inverted(112, 5, 1, 6, repeats=3), inverted(112, 5, 1, 3)),
    (inverted(184, 5, 2, 6, repeats=4),),
    (inverted(352, 3, 1, 6),),
)

# --- MobileNet-EdgeTPU, in TensorFlow's official models

EDGETPU_V1: Stages = (
    (conv(16, 1),),
    (edge(32, 3, 2, 8), edge(32, 3, 1, 4, repeats=3)),
    (edge(48, 3, 2, 8), edge(48, 3, 1, 4, repeats=3)),
    (inverted(96, 3, 2, 8), inverted(96, 3, 1, 4, repeats=3)),
    (inverted(96, 3, 1, 8, skip=False), inverted(96, 3, 1, 4, repeats=3)),
    (inverted(160, 5, 2, 8), inverted(160, 5, 1, 4, repeats=3)),
    (inverted(192, 3, 1, 8),),
)


def edgetpu_v2(features: tuple[int, ...], group_size: int) -> Stages:
    """The second version's table for the stages' features."""
    first, second, third, *middle, last = features
    grouped = functools.partial(edge, kernel_size=3, expansion=4, group_size=group_size)
    return (
        (conv(first, 1),),
        (edge(second, 3, 2, 8), grouped(second)),
        (edge(third, 3, 2, 8), grouped(third), edge(third, 3, 1, 4), grouped(third)),
        *(
            (first_kind(width, 3, strides, 8), inverted(width, 3, 1, 4, repeats=3))
            for first_kind, width, strides in zip(
                (edge, inverted, inverted), middle, (2, 1, 2), strict=True
            )
        ),
        (inverted(last, 3, 1, 8),),
    )


def _edgetpu_v2(features: tuple[int, ...], *, group_size: int = 64, **fields: Any) -> Model:
    stem = {"stem_features": 64, "stem_kernel_size": 5}
    return scaled(edgetpu_v2(features, group_size), **{**stem, **fields})


# torchvision's MobileNetV3 has another epsilon than timm's: neither takes the other's weights.
_TORCHVISION_V3: dict[str, Any] = {
    "norm": TORCHVISION_TF_NORM,
    "dropout": 0.2,
    "dilate_first": True,
    "torchvision": "mobilenet_v3",
}

# Names as in timm, and below them torchvision's. timm's weights of fbnetc_100 were trained with
# TensorFlow's epsilon, and so it is here; timm has another unless it loads them.
MOBILENETS: dict[str, Model] = {
    "mobilenetv1_100": _mobilenet_v1(1.0),
    "mobilenetv1_100h": _mobilenet_v1(1.0, 1024),
    "mobilenetv1_125": _mobilenet_v1(1.25),
    "mobilenetv2_035": _mobilenet_v2(0.35),
    "mobilenetv2_050": _mobilenet_v2(0.5),
    "mobilenetv2_075": _mobilenet_v2(0.75),
    "mobilenetv2_100": _mobilenet_v2(1.0),
    "mobilenetv2_140": _mobilenet_v2(1.4),
    "mobilenetv2_110d": _mobilenet_v2(1.1, 1.2, fix_ends=True),
    "mobilenetv2_120d": _mobilenet_v2(1.2, 1.4, fix_ends=True),
    "mobilenetv3_large_075": _large(0.75),
    "mobilenetv3_large_100": _large(1.0),
    "mobilenetv3_large_150d": _large(1.5, 1.2),
    "mobilenetv3_small_050": _small(0.5),
    "mobilenetv3_small_075": _small(0.75),
    "mobilenetv3_small_100": _small(1.0),
    "mobilenetv3_rw": _mobilenet_v3(
        _RW_STAGES, 1280, head_bias=False, gate=squeeze_as_block, norm=TF_NORM
    ),
    "tf_mobilenetv3_large_075": _large(0.75, **TF),
    "tf_mobilenetv3_large_100": _large(1.0, **TF),
    "tf_mobilenetv3_small_075": _small(0.75, **TF),
    "tf_mobilenetv3_small_100": _small(1.0, **TF),
    "tf_mobilenetv3_large_minimal_100": _mobilenet_v3(
        minimal(MOBILENET_V3_LARGE), 1280, activation="relu", **TF
    ),
    "tf_mobilenetv3_small_minimal_100": _mobilenet_v3(
        minimal(MOBILENET_V3_SMALL), 1024, activation="relu", **TF
    ),
    "lcnet_035": _lcnet(0.35),
    "lcnet_050": _lcnet(0.5),
    "lcnet_075": _lcnet(0.75),
    "lcnet_100": _lcnet(1.0),
    "lcnet_150": _lcnet(1.5),
    "fbnetv3_b": _fbnet_v3(FBNET_V3_B, 16),
    "fbnetv3_d": _fbnet_v3(FBNET_V3_D, 24),
    "fbnetv3_g": _fbnet_v3(FBNET_V3_G, 32),
    **{name: scaled(stages, **_HARD) for name, stages in _HARDCORE_NAS.items()},
    "mnasnet_050": _mnasnet(MNASNET_B1, 0.5),
    "mnasnet_075": _mnasnet(MNASNET_B1, 0.75),
    "mnasnet_100": _mnasnet(MNASNET_B1, 1.0),
    "mnasnet_140": _mnasnet(MNASNET_B1, 1.4),
    "mnasnet_small": _mnasnet(MNASNET_SMALL, 1.0, 8),
    "semnasnet_050": _mnasnet(MNASNET_A1, 0.5),
    "semnasnet_075": _mnasnet(MNASNET_A1, 0.75),
    "semnasnet_100": _mnasnet(MNASNET_A1, 1.0),
    "semnasnet_140": _mnasnet(MNASNET_A1, 1.4),
    "spnasnet_100": _mnasnet(SPNASNET, 1.0),
    "fbnetc_100": scaled(FBNET_C, stem_features=16, head_features=1984, norm=TF_NORM),
    "mobilenet_edgetpu_100": scaled(EDGETPU_V1),
    "mobilenet_edgetpu_v2_xs": _edgetpu_v2(
        (16, 32, 48, 96, 144, 160, 192), stem_features=32, stem_kernel_size=3
    ),
    "mobilenet_edgetpu_v2_s": _edgetpu_v2((24, 48, 64, 128, 160, 192, 256)),
    "mobilenet_edgetpu_v2_m": _edgetpu_v2((32, 64, 80, 160, 192, 240, 320), head_features=1344),
    "mobilenet_edgetpu_v2_l": _edgetpu_v2(
        (32, 64, 96, 192, 240, 256, 384),
        stem_kernel_size=7,
        group_size=128,
        head_features=1408,
    ),
    "mobilenet_v2": _mobilenet_v2(),
    "mobilenet_v3_large": _large(**_TORCHVISION_V3, timm="mobilenetv3_large_100"),
    "mobilenet_v3_small": _small(**_TORCHVISION_V3, timm="mobilenetv3_small_100"),
}
