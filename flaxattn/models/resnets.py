"""Residual networks by name, as the fields of a `ResNet`: timm's names, and torchvision's.

All that timm 1.0.31 builds from its ResNet class; and resnet10, which it lacks.
"""

from typing import Any

from flaxattn.layers.norm import GroupNorm

Fields = dict[str, Any]

_R18: Fields = {"block": "basic", "stage_sizes": (2, 2, 2, 2)}
_R34: Fields = {"block": "basic", "stage_sizes": (3, 4, 6, 3)}
_R26: Fields = {"stage_sizes": (2, 2, 2, 2)}
_R50: Fields = {"stage_sizes": (3, 4, 6, 3)}
_R101: Fields = {"stage_sizes": (3, 4, 23, 3)}
_R152: Fields = {"stage_sizes": (3, 8, 36, 3)}
_R200: Fields = {"stage_sizes": (3, 24, 36, 3)}
_R269: Fields = {"stage_sizes": (3, 30, 48, 8)}

# The letters after the depth, from gluon's variants.
_C: Fields = {"stem": "deep"}
_D: Fields = {"stem": "deep", "shortcut": "average"}
_E: Fields = {"stem": "deep", "stem_width": 64, "shortcut": "average"}
_S: Fields = {"stem": "deep", "stem_width": 64}
_T: Fields = {"stem": "tiered", "shortcut": "average"}

_32X4D: Fields = {"groups": 32, "group_width": 4}
_32X8D: Fields = {"groups": 32, "group_width": 8}
_64X4D: Fields = {"groups": 64, "group_width": 4}

_AA: Fields = {"downsampling": "average"}
_BLUR: Fields = {"downsampling": "blur"}

_SE: Fields = {"own_attention": {"name": "se", "variant": "timm"}}
_ECA: Fields = {"own_attention": {"name": "eca", "variant": "timm"}}


# Pruned (arXiv:2002.08258) when ECA had its kernels already, of sizes 5, 5, 5 and 7 in the four
# stages: b and gamma give these for the channels that are left.
_ECA_PRUNED: Fields = {"own_attention": {"name": "eca", "variant": "timm", "b": 8, "gamma": 3}}
# fmt: off
_PRUNED_50 = (
    (19, ((47, 18), (52, 22), (64, 35))),
    (171, ((85, 37), (107, 80), (120, 85), (125, 87))),
    (818, ((198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239))),
    (2022, ((492, 237), (512, 500), (512, 490))),
)
_PRUNED_101 = (
    (26, ((45, 25), (53, 20), (60, 27))),
    (142, ((81, 24), (93, 49), (102, 54), (122, 78))),
    (278, (
        (101, 25), (239, 160), (234, 156), (250, 176), (253, 191), (251, 175), (230, 128),
        (244, 154), (244, 159), (238, 97), (244, 149), (253, 181), (245, 119), (255, 216),
        (256, 201), (253, 149), (254, 141), (256, 190), (256, 217), (255, 156), (256, 155),
        (256, 232), (256, 214),
    )),
    (2042, ((499, 289), (512, 512), (512, 502))),
)
# fmt: on


def _sk(**fields: Any) -> Fields:
    return {"conv": {"name": "sk", "variant": "timm", **fields}}


def _resnest(*, radix: int = 2, groups: int = 1, **fields: Any) -> Fields:
    """The convolution with as many groups as the 1x1 before it makes widths for."""
    conv = {"name": "split_attention", "variant": "timm", "radix": radix, "groups": groups}
    return {"downsampling": "average_3x3", "conv": conv, "groups": groups, **fields}


_RS: Fields = {
    **_D,
    "stem_pool": "conv",
    "own_attention": {"name": "se", "variant": "timm", "reduction": 4},
}

RESNETS: dict[str, Fields] = {
    "resnet10": {"block": "basic", "stage_sizes": (1, 1, 1, 1)},
    "resnet10t": {"block": "basic", "stage_sizes": (1, 1, 1, 1), **_T},
    "resnet14t": {"stage_sizes": (1, 1, 1, 1), **_T},
    "resnet18": _R18,
    "resnet18d": {**_R18, **_D},
    "resnet26": _R26,
    "resnet26d": {**_R26, **_D},
    "resnet26t": {**_R26, **_T},
    "resnet34": _R34,
    "resnet34d": {**_R34, **_D},
    "resnet50": _R50,
    "resnet50_gn": {**_R50, "norm": GroupNorm},
    "resnet50c": {**_R50, **_C},
    "resnet50d": {**_R50, **_D},
    "resnet50s": {**_R50, **_S},
    "resnet50t": {**_R50, **_T},
    "resnet101": _R101,
    "resnet101c": {**_R101, **_C},
    "resnet101d": {**_R101, **_D},
    "resnet101s": {**_R101, **_S},
    "resnet152": _R152,
    "resnet152c": {**_R152, **_C},
    "resnet152d": {**_R152, **_D},
    "resnet152s": {**_R152, **_S},
    "resnet200": _R200,
    "resnet200d": {**_R200, **_D},
    "wide_resnet50_2": {**_R50, "group_width": 128},
    "wide_resnet101_2": {**_R101, "group_width": 128},
    "test_resnet": {
        "block": ("basic", "basic", "bottleneck", "basic"),
        "stage_sizes": (1, 1, 1, 1),
        "width": (32, 48, 48, 96),
        **_D,
    },
    # ResNeXt, arXiv:1611.05431.
    "resnext50_32x4d": {**_R50, **_32X4D},
    "resnext50d_32x4d": {**_R50, **_D, **_32X4D},
    "resnext101_32x4d": {**_R101, **_32X4D},
    "resnext101_32x8d": {**_R101, **_32X8D},
    "resnext101_32x16d": {**_R101, "groups": 32, "group_width": 16},
    "resnext101_32x32d": {**_R101, "groups": 32, "group_width": 32},
    "resnext101_64x4d": {**_R101, **_64X4D},
    # Efficient channel attention, arXiv:1910.03151.
    "ecaresnet26t": {**_R26, **_T, **_ECA},
    "ecaresnet50d": {**_R50, **_D, **_ECA},
    "ecaresnet50t": {**_R50, **_T, **_ECA},
    "ecaresnet50d_pruned": {**_R50, **_D, "pruned": _PRUNED_50, **_ECA_PRUNED},
    "ecaresnet101d": {**_R101, **_D, **_ECA},
    "ecaresnet101d_pruned": {**_R101, **_D, "pruned": _PRUNED_101, **_ECA_PRUNED},
    "ecaresnet200d": {**_R200, **_D, **_ECA},
    "ecaresnet269d": {**_R269, **_D, **_ECA},
    "ecaresnetlight": {"stage_sizes": (1, 1, 11, 3), "shortcut": "average", **_ECA},
    "ecaresnext26t_32x4d": {**_R26, **_T, **_32X4D, **_ECA},
    "ecaresnext50t_32x4d": {**_R50, **_T, **_32X4D, **_ECA},
    # Squeeze-and-excitation, arXiv:1709.01507.
    "seresnet18": {**_R18, **_SE},
    "seresnet34": {**_R34, **_SE},
    "seresnet50": {**_R50, **_SE},
    "seresnet50t": {**_R50, **_T, **_SE},
    "seresnet101": {**_R101, **_SE},
    "seresnet152": {**_R152, **_SE},
    "seresnet152d": {**_R152, **_D, **_SE},
    "seresnet200d": {**_R200, **_D, **_SE},
    "seresnet269d": {**_R269, **_D, **_SE},
    "seresnext26d_32x4d": {**_R26, **_D, **_32X4D, **_SE},
    "seresnext26t_32x4d": {**_R26, **_T, **_32X4D, **_SE},
    "seresnext50_32x4d": {**_R50, **_32X4D, **_SE},
    "seresnext101_32x4d": {**_R101, **_32X4D, **_SE},
    "seresnext101_32x8d": {**_R101, **_32X8D, **_SE},
    "seresnext101_64x4d": {**_R101, **_64X4D, **_SE},
    "seresnext101d_32x8d": {**_R101, **_D, **_32X8D, **_SE},
    "senet154": {**_R152, **_S, **_64X4D, "first_reduction": 2, "shortcut": "3x3", **_SE},
    # Anti-aliased: by an average, and by a blur (arXiv:1904.11486).
    "resnetaa34d": {**_R34, **_D, **_AA},
    "resnetaa50": {**_R50, **_AA},
    "resnetaa50d": {**_R50, **_D, **_AA},
    "resnetaa101d": {**_R101, **_D, **_AA},
    "seresnetaa50d": {**_R50, **_D, **_AA, **_SE},
    "seresnextaa101d_32x8d": {**_R101, **_D, **_32X8D, **_AA, **_SE},
    "seresnextaa201d_32x8d": {"stage_sizes": (3, 24, 36, 4), **_E, **_32X8D, **_AA, **_SE},
    "resnetblur18": {**_R18, **_BLUR},
    "resnetblur50": {**_R50, **_BLUR},
    "resnetblur50d": {**_R50, **_D, **_BLUR},
    "resnetblur101d": {**_R101, **_D, **_BLUR},
    # ResNet-RS, arXiv:2103.07579.
    "resnetrs50": {**_R50, **_RS},
    "resnetrs101": {**_R101, **_RS},
    "resnetrs152": {**_R152, **_RS},
    "resnetrs200": {**_R200, **_RS},
    "resnetrs270": {"stage_sizes": (4, 29, 53, 4), **_RS},
    "resnetrs350": {"stage_sizes": (4, 36, 72, 4), **_RS},
    "resnetrs420": {"stage_sizes": (4, 44, 87, 4), **_RS},
    # Selective kernels, arXiv:1903.06586.
    "skresnet18": {**_R18, **_sk(reduction=8, divisor=16)},
    "skresnet34": {**_R34, **_sk(reduction=8, divisor=16)},
    "skresnet50": {**_R50, **_sk()},
    "skresnet50d": {**_R50, **_D, **_sk()},
    "skresnext50_32x4d": {**_R50, **_32X4D, **_sk(groups=32, split_input=False, divisor=32)},
    # Split attention, arXiv:2004.08955; 4s2x40d is radix 4 and two groups of 40 channels.
    "resnest14d": {"stage_sizes": (1, 1, 1, 1), **_D, **_resnest()},
    "resnest26d": {**_R26, **_D, **_resnest()},
    "resnest50d": {**_R50, **_D, **_resnest()},
    "resnest50d_1s4x24d": {
        **_R50,
        **_D,
        **_resnest(radix=1, groups=4, group_width=24, downsampling="average_3x3_first"),
    },
    "resnest50d_4s2x40d": {
        **_R50,
        **_D,
        **_resnest(radix=4, groups=2, group_width=40, downsampling="average_3x3_first"),
    },
    "resnest101e": {**_R101, **_E, **_resnest()},
    "resnest200e": {**_R200, **_E, **_resnest()},
    "resnest269e": {**_R269, **_E, **_resnest()},
}
