"""Tables of the EfficientNets and of what was made of them; rows as in `BlockSpec`.

A row says features, kernel size, strides and expansion; the strides are those of its first block.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from flaxattn.attention import CondConv
from flaxattn.layers.widths import make_divisible
from flaxattn.models.block_spec import Stages, conv, edge, inverted, separable
from flaxattn.models.gates import pool_context
from flaxattn.models.mobilenet import TF, TF_NORM, TORCHVISION_TF_NORM, Model, scaled

# --- EfficientNet, Tan and Le 2019, arXiv:1905.11946, table 1

EFFICIENTNET: Stages = (
    (separable(16, 3, 1, se=0.25),),
    (inverted(24, 3, 2, 6, repeats=2, se=0.25),),
    (inverted(40, 5, 2, 6, repeats=2, se=0.25),),
    (inverted(80, 3, 2, 6, repeats=3, se=0.25),),
    (inverted(112, 5, 1, 6, repeats=3, se=0.25),),
    (inverted(192, 5, 2, 6, repeats=4, se=0.25),),
    (inverted(320, 3, 1, 6, se=0.25),),
)

# Width and depth of the compound scaling, section 3.3 and the authors' code.
_SCALES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "b8": (2.2, 3.6),
    "l2": (4.3, 5.3),
}


def _efficientnet(
    width: float, depth: float, stages: Stages = EFFICIENTNET, **fields: Any
) -> Model:
    ends: dict[str, Any] = {
        "stem_features": make_divisible(32 * width, 8),
        "head_features": make_divisible(1280 * width, 8),
    }
    return scaled(stages, width, depth, **{"activation": "silu", **ends, **fields})


# --- EfficientNet-Lite, in Google's automl: no squeeze-and-excitation, ReLU6, ends that do not grow

LITE: Stages = tuple(tuple(row._replace(se=0.0) for row in stage) for stage in EFFICIENTNET)


def _lite(width: float, depth: float, **fields: Any) -> Model:
    return scaled(LITE, width, depth, fix_ends=True, activation="relu6", **fields)


# --- EfficientNet-EdgeTPU, Gupta and Tan 2019; its first block expands from 24 channels, not the
# stem's 32

EDGE: Stages = (
    (edge(24, 3, 1, 4, expand_from=24, skip=False),),
    (edge(32, 3, 2, 8, repeats=2),),
    (edge(48, 3, 2, 8, repeats=4),),
    (inverted(96, 5, 2, 8, repeats=5),),
    (inverted(144, 5, 1, 8, repeats=4),),
    (inverted(192, 5, 2, 8, repeats=2),),
)
_edge = functools.partial(_efficientnet, stages=EDGE, activation="relu")

# --- CondConv, Yang et al. 2019, arXiv:1904.04971: experts in the last three stages


def mixed_by_experts(experts: int) -> Stages:
    """EfficientNet whose last three stages have `experts` kernels for each convolution."""
    last = (tuple(row._replace(experts=experts) for row in stage) for stage in EFFICIENTNET[4:])
    return (*EFFICIENTNET[:4], *last)


def _cond_conv(width: float, depth: float, experts: int, **fields: Any) -> Model:
    return _efficientnet(width, depth, mixed_by_experts(experts), expert_conv=CondConv, **fields)


# --- EfficientNetV2, Tan and Le 2021, arXiv:2104.00298, table 4 and the authors' code

_first = functools.partial(conv, skip=True)

EFFICIENTNET_V2_BASE: Stages = (
    (_first(16, 3, 1),),
    (edge(32, 3, 2, 4, repeats=2),),
    (edge(48, 3, 2, 4, repeats=2),),
    (inverted(96, 3, 2, 4, repeats=3, se=0.25),),
    (inverted(112, 3, 1, 6, repeats=5, se=0.25),),
    (inverted(192, 3, 2, 6, repeats=8, se=0.25),),
)
EFFICIENTNET_V2_S: Stages = (
    (_first(24, 3, 1, repeats=2),),
    (edge(48, 3, 2, 4, repeats=4),),
    (edge(64, 3, 2, 4, repeats=4),),
    (inverted(128, 3, 2, 4, repeats=6, se=0.25),),
    (inverted(160, 3, 1, 6, repeats=9, se=0.25),),
    (inverted(256, 3, 2, 6, repeats=15, se=0.25),),
)
EFFICIENTNET_V2_M: Stages = (
    (_first(24, 3, 1, repeats=3),),
    (edge(48, 3, 2, 4, repeats=5),),
    (edge(80, 3, 2, 4, repeats=5),),
    (inverted(160, 3, 2, 4, repeats=7, se=0.25),),
    (inverted(176, 3, 1, 6, repeats=14, se=0.25),),
    (inverted(304, 3, 2, 6, repeats=18, se=0.25),),
    (inverted(512, 3, 1, 6, repeats=5, se=0.25),),
)
EFFICIENTNET_V2_L: Stages = (
    (_first(32, 3, 1, repeats=4),),
    (edge(64, 3, 2, 4, repeats=7),),
    (edge(96, 3, 2, 4, repeats=7),),
    (inverted(192, 3, 2, 4, repeats=10, se=0.25),),
    (inverted(224, 3, 1, 6, repeats=19, se=0.25),),
    (inverted(384, 3, 2, 6, repeats=25, se=0.25),),
    (inverted(640, 3, 1, 6, repeats=7, se=0.25),),
)
EFFICIENTNET_V2_XL: Stages = (
    (_first(32, 3, 1, repeats=4),),
    (edge(64, 3, 2, 4, repeats=8),),
    (edge(96, 3, 2, 4, repeats=8),),
    (inverted(192, 3, 2, 4, repeats=16, se=0.25),),
    (inverted(256, 3, 1, 6, repeats=24, se=0.25),),
    (inverted(512, 3, 2, 6, repeats=32, se=0.25),),
    (inverted(640, 3, 1, 6, repeats=8, se=0.25),),
)
# timm's version of before the authors' code, from the paper's figures.
_V2_RW: Stages = (
    (edge(24, 3, 1, 1, repeats=2),),
    *EFFICIENTNET_V2_S[1:5],
    (inverted(272, 3, 2, 6, repeats=15, se=0.25),),
)
# (table, channels of the stem)
_V2 = {
    "s": (EFFICIENTNET_V2_S, 24),
    "m": (EFFICIENTNET_V2_M, 24),
    "l": (EFFICIENTNET_V2_L, 32),
    "xl": (EFFICIENTNET_V2_XL, 32),
}


def _v2(
    stages: Stages,
    stem_features: int,
    width: float = 1.0,
    depth: float | Sequence[float] = 1.0,
    head_features: int = 1280,
    round_limit: float = 0.9,
    **fields: Any,
) -> Model:
    rounded = functools.partial(make_divisible, divisor=8, round_limit=round_limit)
    ends: dict[str, Any] = {
        "stem_features": rounded(stem_features * width),
        "head_features": rounded(head_features * width),
    }
    return scaled(
        stages, width, depth, round_limit=round_limit, activation="silu", **ends, **fields
    )


_v2_base: Callable[..., Model] = functools.partial(
    _v2, EFFICIENTNET_V2_BASE, 32, round_limit=0.0, **TF
)

# --- MixNet, Tan and Le 2019, arXiv:1907.09595, Fig. 4

_swish = functools.partial(inverted, activation="silu")
_HALVES: dict[str, Any] = {"expand_size": (1, 1), "project_size": (1, 1)}
_PROJECT: dict[str, Any] = {"project_size": (1, 1)}

MIXNET_S: Stages = (
    (separable(16, 3, 1),),
    (inverted(24, 3, 2, 6, **_HALVES), inverted(24, 3, 1, 3, **_HALVES)),
    (
        _swish(40, (3, 5, 7), 2, 6, se=0.5),
        _swish(40, (3, 5), 1, 6, repeats=3, se=0.5, **_HALVES),
    ),
    (
        _swish(80, (3, 5, 7), 2, 6, se=0.25, **_PROJECT),
        _swish(80, (3, 5), 1, 6, repeats=2, se=0.25, **_PROJECT),
    ),
    (
        _swish(120, (3, 5, 7), 1, 6, se=0.5, **_HALVES),
        _swish(120, (3, 5, 7, 9), 1, 3, repeats=2, se=0.5, **_HALVES),
    ),
    (
        _swish(200, (3, 5, 7, 9, 11), 2, 6, se=0.5),
        _swish(200, (3, 5, 7, 9), 1, 6, repeats=2, se=0.5, **_PROJECT),
    ),
)
MIXNET_M: Stages = (
    (separable(24, 3, 1),),
    (inverted(32, (3, 5, 7), 2, 6, **_HALVES), inverted(32, 3, 1, 3, **_HALVES)),
    (
        _swish(40, (3, 5, 7, 9), 2, 6, se=0.5),
        _swish(40, (3, 5), 1, 6, repeats=3, se=0.5, **_HALVES),
    ),
    (
        _swish(80, (3, 5, 7), 2, 6, se=0.25),
        _swish(80, (3, 5, 7, 9), 1, 6, repeats=3, se=0.25, **_HALVES),
    ),
    (
        _swish(120, 3, 1, 6, se=0.5),
        _swish(120, (3, 5, 7, 9), 1, 3, repeats=3, se=0.5, **_HALVES),
    ),
    (
        _swish(200, (3, 5, 7, 9), 2, 6, se=0.5),
        _swish(200, (3, 5, 7, 9), 1, 6, repeats=3, se=0.5, **_PROJECT),
    ),
)


def _mixnet(
    stages: Stages, stem_features: int, width: float = 1.0, depth: float = 1.0, **fields: Any
) -> Model:
    stem_features = make_divisible(stem_features * width, 8)
    ends: dict[str, Any] = {"stem_features": stem_features, "head_features": 1536}
    return scaled(stages, width, depth, rounding=round, **ends, **fields)


_mixnet_s = functools.partial(_mixnet, MIXNET_S, 16)
_mixnet_m = functools.partial(_mixnet, MIXNET_M, 24)

# --- TinyNet, Han et al. 2020, arXiv:2010.14819: EfficientNet scaled down


def _tinynet(width: float, depth: float) -> Model:
    head_features = max(1280, make_divisible(1280 * width, 8))
    fields: dict[str, Any] = {"head_features": head_features, "activation": "silu"}
    return scaled(EFFICIENTNET, width, depth, rounding=round, **fields)


# timm's network for tests of 0.36 million parameters, with weights.
_TEST: Stages = (
    (_first(16, 3, 1),),
    (edge(24, 3, 2, 4),),
    (edge(32, 3, 2, 4),),
    (inverted(48, 3, 2, 4, se=0.25),),
    (inverted(64, 3, 2, 4, se=0.25),),
)

_EDGES = {"es": (1.0, 1.0), "em": (1.0, 1.1), "el": (1.2, 1.4)}
_LITES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4)}
_LITES["lite4"] = (1.4, 1.8)
_EXPERTS = {"cc_b0_4e": (1.0, 1.0, 4), "cc_b0_8e": (1.0, 1.0, 8), "cc_b1_8e": (1.0, 1.1, 8)}

# torchvision's networks and timm's compute the same up to b4; from there on they have another
# epsilon, and neither takes the other's weights.
_SAME = ("b0", "b1", "b2", "b3", "b4")
_TORCHVISION: dict[str, Any] = {"torchvision": "efficientnet"}

# Names as in timm; efficientnet_v2_* and *_tv are torchvision's.
EFFICIENTNETS: dict[str, Model] = {
    **{
        f"efficientnet_{name}": _efficientnet(*scales, **_TORCHVISION if name in _SAME else {})
        for name, scales in _SCALES.items()
    },
    **{
        f"efficientnet_{name}_tv": _efficientnet(
            *_SCALES[name],
            norm=TORCHVISION_TF_NORM,
            dropout=dropout,
            timm=f"efficientnet_{name}",
            **_TORCHVISION,
        )
        for name, dropout in {"b5": 0.4, "b6": 0.5, "b7": 0.5}.items()
    },
    **{f"tf_efficientnet_{name}": _efficientnet(*s, **TF) for name, s in _SCALES.items()},
    **{f"efficientnet_{name}": _lite(*scales) for name, scales in _LITES.items()},
    **{f"tf_efficientnet_{name}": _lite(*scales, **TF) for name, scales in _LITES.items()},
    **{f"efficientnet_{name}": _edge(*scales) for name, scales in _EDGES.items()},
    **{f"efficientnet_{name}_pruned": _edge(*_EDGES[name]) for name in ("es", "el")},
    **{f"tf_efficientnet_{name}": _edge(*scales, **TF) for name, scales in _EDGES.items()},
    **{f"efficientnet_{name}": _cond_conv(*numbers) for name, numbers in _EXPERTS.items()},
    **{f"tf_efficientnet_{name}": _cond_conv(*n, **TF) for name, n in _EXPERTS.items()},
    **{f"efficientnetv2_{name}": _v2(*table) for name, table in _V2.items()},
    **{f"tf_efficientnetv2_{name}": _v2(*table, **TF) for name, table in _V2.items()},
    **{
        f"efficientnet_v2_{name}": _v2(
            *_V2[name],
            norm=TF_NORM,
            dropout=dropout,
            timm=f"efficientnetv2_{name}",
            **_TORCHVISION,
        )
        for name, dropout in {"s": 0.2, "m": 0.3, "l": 0.4}.items()
    },
    "tf_efficientnetv2_b0": _v2_base(),
    "tf_efficientnetv2_b1": _v2_base(1.0, 1.1),
    "tf_efficientnetv2_b2": _v2_base(1.1, 1.2),
    "tf_efficientnetv2_b3": _v2_base(1.2, 1.4),
    "efficientnetv2_rw_t": _v2(EFFICIENTNET_V2_S, 24, 0.8, 0.9),
    "gc_efficientnetv2_rw_t": _v2(EFFICIENTNET_V2_S, 24, 0.8, 0.9, gate=pool_context),
    "efficientnetv2_rw_s": _v2(_V2_RW, 24, head_features=1792),
    "efficientnetv2_rw_m": _v2(_V2_RW, 24, 1.2, (1.2,) * 4 + (1.6,) * 2, head_features=1792),
    "mixnet_s": _mixnet_s(),
    "mixnet_m": _mixnet_m(),
    "mixnet_l": _mixnet_m(1.3),
    "mixnet_xl": _mixnet_m(1.6, 1.2),
    "mixnet_xxl": _mixnet_m(2.4, 1.3),
    "tf_mixnet_s": _mixnet_s(**TF),
    "tf_mixnet_m": _mixnet_m(**TF),
    "tf_mixnet_l": _mixnet_m(1.3, **TF),
    "tinynet_a": _tinynet(1.0, 1.2),
    "tinynet_b": _tinynet(0.75, 1.1),
    "tinynet_c": _tinynet(0.54, 0.85),
    "tinynet_d": _tinynet(0.54, 0.695),
    "tinynet_e": _tinynet(0.51, 0.6),
    "test_efficientnet": _v2(_TEST, 24, head_features=256, round_limit=0.0),
}
