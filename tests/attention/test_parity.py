"""Every mechanism and variant against its PyTorch reference, and its weights there and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from flaxattn.attention import ATTENTION, create_attention
from tests.attention import contract, parity
from tests.torch_reference import (
    attention_residual,
    cbam,
    channel_attention,
    dual_attention,
    efficient_channel,
    selective_kernel,
    self_attention,
    simplified_psa,
    spatial_attention,
    squeeze_excite,
)
from tests.torch_reference.torchvision_shim import timm


class Case(NamedTuple):
    """A layer and the reference it must equal.

    Fields:
        rows: of the printed table: "name" as in ATTENTION, or "name.variant", then perhaps a comma
            and what else is special. Several rows are several names of one and the same layer.
        fields: of the layer, beside those that the variant sets.
        reference: makes the torch module for parity.FEATURES channels.
        naming: of the reference's weights.
        maps: sizes (H, W) to compare on.
        modes: values of `train` to compare in.
    """

    rows: tuple[str, ...]
    fields: dict[str, Any]
    reference: Callable[[], torch.nn.Module]
    naming: str
    maps: tuple[tuple[int, int], ...] = parity.MAPS
    modes: tuple[bool, ...] = (False, True)

    @property
    def layer(self):
        layers = [
            create_attention(name, variant=variant, **self.fields)
            for name, variant in map(mechanism, self.rows)
        ]
        assert all(layer == layers[0] for layer in layers), f"{self.rows} are different layers"
        return layers[0]


def mechanism(row):
    """The name and the variant, or None, that a row is about."""
    name, _, variant = row.partition(", ")[0].partition(".")
    return name, variant or None


ALL_POOLS = ("avg", "max", "lp", "lse")

CASES = [
    Case(
        ("cbam", "cbam.article_s0"),
        {"reduction": 4},
        lambda: cbam.CBAMArticle0(32, 4),
        "article_s0",
    ),
    Case(("cbam.article_s2",), {}, lambda: cbam.CBAMArticle2(32), "article_s2"),
    Case(("cbam.official",), {}, lambda: cbam.CBAMOfficial(32), "official"),
    Case(
        ("cbam.timm",),
        {"reduction": 3},
        lambda: timm.layers.cbam.CbamModule(32, rd_ratio=1 / 3),
        "timm",
    ),
    Case(
        ("channel",),
        {"reduction": 4},
        lambda: timm.layers.cbam.ChannelAttn(32, rd_ratio=1 / 4),
        "timm",
    ),
    Case(
        ("channel.article_s0",),
        {"reduction": 4},
        lambda: channel_attention.ChannelAttention(32, 4),
        "article_s0",
    ),
    Case(("channel.official",), {}, lambda: channel_attention.ChannelGate(32), "official"),
    Case(
        ("channel.official, all pools",),
        {"reduction": 4, "pools": ALL_POOLS},
        lambda: channel_attention.ChannelGate(32, 4, ALL_POOLS),
        "official",
    ),
    Case(
        ("channel.timm",),
        {"reduction": 3},
        lambda: timm.layers.cbam.ChannelAttn(32, rd_ratio=1 / 3),
        "timm",
    ),
    Case(("eca",), {}, efficient_channel.ECALayer, "official"),
    Case(("eca.article_s0",), {}, efficient_channel.ECALayer, "articles"),
    Case(
        ("eca.article_s2",),
        {"kernel_size": 5},
        lambda: efficient_channel.ECALayer(5),
        "articles",
    ),
    Case(
        ("eca.official",),
        {"kernel_size": 7},
        lambda: efficient_channel.ECALayer(7),
        "official",
    ),
    Case(("eca.timm",), {}, lambda: timm.layers.EcaModule(32), "timm"),
    Case(("sca", "sca.article_s3"), {}, lambda: dual_attention.DualAttention(32), "articles"),
    Case(
        ("sca.article_s3_dropout",),
        {},
        lambda: dual_attention.DualAttention(32, drop_rate=0.1),
        "articles",
        modes=(False,),  # two random generators never agree
    ),
    Case(("sca_lite", "sca.lite"), {}, lambda: dual_attention.LiteDualAttention(32), "articles"),
    Case(
        ("sca_residual", "sca_residual.article_s3"),
        {},
        lambda: attention_residual.AttnResBlock(32),
        "articles",
    ),
    Case(
        ("sca_residual, reduction 4",),
        {"reduction": 4},
        lambda: attention_residual.AttnResBlock(32, reduction=4),
        "articles",
        maps=((13, 7),),
    ),
    Case(
        ("se.article_s0",),
        {"reduction": 4},
        lambda: squeeze_excite.SEBlock(32, 4, bias=False),
        "articles",
    ),
    Case(
        ("se", "se.article_s1"),
        {"reduction": 4},
        lambda: squeeze_excite.SEBlock(32, 4),
        "articles",
    ),
    Case(("se.article_s2",), {}, lambda: squeeze_excite.SEBlock(32, bias=False), "articles"),
    Case(("se.timm",), {}, lambda: timm.layers.SEModule(32), "timm"),
    Case(
        ("self_attention", "self_attention.article_s1"),
        {},
        lambda: self_attention.SelfAttention(32),
        "articles",
    ),
    *[
        Case(
            ("self_attention, chunked",),
            {"query_chunk": query_chunk},
            lambda: self_attention.SelfAttention(32),
            "articles",
            maps=((13, 7),),
        )
        for query_chunk in (1, 40, 10_000)
    ],
    Case(
        ("simplified_psa",),
        {"features": 24},
        lambda: simplified_psa.PSAModule(32, 24, "gather"),
        "articles",
    ),
    Case(
        ("simplified_psa, mix",),
        {"features": 24, "repair": "mix"},
        lambda: simplified_psa.PSAModule(32, 24, "mix"),
        "articles",
    ),
    *[
        Case(
            ("simplified_psa.article_s0",),
            {"features": height * width},
            lambda features=height * width: simplified_psa.PSAModule(32, features),
            "articles",
            maps=((height, width),),
        )
        for height, width in ((16, 16), (13, 7), (4, 8), (1, 2))
    ],
    Case(("sk",), {"features": 32}, lambda: selective_kernel.SkNet(32, softmax=True), "articles"),
    Case(("sk.article_s2",), {"features": 32}, lambda: selective_kernel.SkNet(32), "articles"),
    Case(
        ("spatial",),
        {"kernel_size": 3},
        lambda: spatial_attention.SpatialAttentionArticle1(3, intended=True),
        "article_s1",
    ),
    Case(("spatial.article_s0",), {}, spatial_attention.SpatialGateArticle0, "article_s0"),
    Case(("spatial.article_s1",), {}, spatial_attention.SpatialAttentionArticle1, "article_s1"),
    Case(("spatial.official",), {}, spatial_attention.SpatialGateOfficial, "official"),
    Case(("spatial.timm",), {}, timm.layers.cbam.SpatialAttn, "timm"),
]


@pytest.mark.parametrize("dtype", parity.BOUNDS)
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        pytest.param(case, shape, id=f"{case.rows[-1]}-{'x'.join(map(str, shape))}")
        for case in CASES
        for shape in parity.shapes(case.maps)
    ],
)
def test_matches_reference(case, shape, dtype, record_property):
    layer = case.layer
    parity.check(
        record_property,
        case.rows,
        layer,
        case.reference(),
        shape=shape,
        dtype=dtype,
        naming=case.naming,
        modes=case.modes,
        refused=getattr(layer, "norm", None) is not None and shape[:3] == (1, 1, 1),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rows[-1])
def test_weights_come_back_bit_for_bit(case):
    shape = (1, *case.maps[0], parity.FEATURES)
    contract.check_round_trip(case.layer, case.reference(), case.naming, shape)


def test_every_name_and_variant_has_its_row():
    compared = {mechanism(row) for case in CASES for row in case.rows}
    for name, create in ATTENTION.items():
        for variant in (None, *getattr(create, "variants", ())):
            assert (name, variant) in compared
