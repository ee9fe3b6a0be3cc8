"""MobileNets, EfficientNets and their kin against timm's and torchvision's."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from flaxattn import BatchNorm, InputError, create_model, weights
from flaxattn.attention import CondConv, EfficientChannel, SelectiveKernel, SqueezeExcite
from flaxattn.models.block_spec import (
    BlockSpec,
    conv,
    edge,
    inverted,
    scale_depth,
    scale_width,
    separable,
)
from flaxattn.models.efficientnet import EFFICIENTNETS
from flaxattn.models.gates import pool_context, squeeze_input, squeeze_inside
from flaxattn.models.inverted_residual import InvertedResidualBlock
from flaxattn.models.inverted_residual_net import InvertedResidualNet
from flaxattn.models.mobilenet import MOBILENETS, TF_NORM
from flaxattn.models.placement import Placement
from tests.models.networks import X, check_logits, check_names, shapes_of
from tests.models.test_resnet import LOGITS, check
from tests.torch_reference.torchvision_shim import timm, torchvision

EfficientNet = timm.models.efficientnet.EfficientNet
MobileNetV3 = timm.models.mobilenetv3.MobileNetV3
TimmSqueezeExcite = timm.models._efficientnet_blocks.SqueezeExcite
decode_arch_def = timm.models._efficientnet_builder.decode_arch_def
round_channels = timm.models._efficientnet_builder.round_channels

NAMES = [*MOBILENETS, *EFFICIENTNETS]
# One of each table; the others differ from it in width, depth, padding and norms.
QUICK = {
    "mobilenetv1_100h",
    "mobilenetv2_035",
    "mobilenetv2_110d",
    "mobilenetv3_small_050",
    "mobilenetv3_large_100",
    "mobilenetv3_rw",
    "lcnet_035",
    "fbnetv3_b",
    "hardcorenas_a",
    "mnasnet_small",
    "semnasnet_050",
    "spnasnet_100",
    "fbnetc_100",
    "mobilenet_edgetpu_100",
    "mobilenet_edgetpu_v2_xs",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "efficientnet_lite0",
    "efficientnet_es",
    "efficientnet_cc_b0_4e",
    "efficientnetv2_rw_t",
    "mixnet_s",
    "tinynet_e",
    "test_efficientnet",
}
# Where timm's own default differs from what its weights were trained with.
TIMM_FIELDS = {"fbnetc_100": {"bn_eps": 1e-3}}
# Here timm and torchvision have one name for two networks: torchvision's have TensorFlow's epsilon.
OTHERWISE_IN_TORCHVISION = {f"efficientnet_b{n}" for n in (5, 6, 7)}

everywhere = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NAMES]
)


def references(name):
    """The networks that compute the same, by naming: timm's, torchvision's or both."""
    found = {}
    if timm.is_model(name):
        found["timm"] = timm.create_model(name, **TIMM_FIELDS.get(name, {}))
    theirs = name.removesuffix("_tv")
    has_suffix, needs_suffix = theirs != name, theirs in OTHERWISE_IN_TORCHVISION
    if theirs in torchvision.models.list_models() and has_suffix == needs_suffix:
        found["torchvision"] = torchvision.models.get_model(theirs)
    return found


def abstract(model):
    """Shapes of the variables, which follow from the table and not from what is reset here."""
    plain = {"norm": BatchNorm, "padding": "symmetric", "dropout": 0.0, "torchvision": None}
    return shapes_of(model.clone(**plain))


@everywhere
def test_names_shapes_and_counts_are_the_references(name):
    model = create_model(name)
    with torch.device("meta"):
        found = references(name)
    check_names(model, abstract(model), found)


# A network with a row of every kind, and timm's words for it.
ROWS = (
    (separable(16, 3, 1, se=0.25),),
    (
        inverted(
            24,
            (3, 5),
            2,
            3,
            repeats=2,
            se=0.5,
            activation="silu",
            expand_size=(1, 1),
            project_size=(1, 1),
        ),
    ),
    (edge(32, 3, 2, 4), edge(32, 3, 1, 2, group_size=16)),
    (inverted(40, 5, 2, 2, repeats=2, se=0.25, experts=3),),
    (separable(48, 3, 1, project_activation=True, skip=False), conv(56, 1)),
)
WORDS = (
    ["ds_r1_k3_s1_c16_se0.25"],
    ["ir_r2_k3.5_a1.1_p1.1_s2_e3_c24_se0.5_nsw"],
    ["er_r1_k3_s2_e4_c32", "er_r1_k3_s1_e2_gs16_c32"],
    ["ir_r2_k5_s2_e2_c40_se0.25_cc3"],
    ["dsa_r1_k3_s1_c48", "cn_r1_k1_s1_c56"],
)
TINY = InvertedResidualNet(
    ROWS,
    stem_features=16,
    head_features=64,
    gate=squeeze_input,
    expert_conv=CondConv,
    num_classes=10,
    norm=TF_NORM,
)


@pytest.mark.parametrize(
    ("padding", "gate", "size", "dtype"),
    [
        ("symmetric", "se", (65, 48), "float64"),
        ("same", "gc", (62, 49), "float64"),
        pytest.param("symmetric", "gc", (64, 49), "float32", marks=pytest.mark.slow),
        pytest.param("same", "se", (65, 48), "float32", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kind_of_block_is_timms(padding, gate, size, dtype, record_property):
    reference = EfficientNet(
        decode_arch_def(WORDS),
        num_classes=10,
        num_features=64,
        stem_size=16,
        pad_type="same" if padding == "same" else "",
        norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=1e-3),
        se_layer=None if gate == "se" else gate,
        global_pool="avgmax",
    )
    gates = {"se": squeeze_input, "gc": pool_context}
    model = TINY.clone(padding=padding, gate=gates[gate], global_pool="avgmax")
    name = f"all kinds of blocks, {gate}, {padding}"
    check(record_property, name, model, reference, size=size, dtype=dtype, naming="timm")


def test_a_head_that_pools_first_is_timms(record_property):
    words = [["ds_r1_k3_s2_c16_se0.25_nre"], ["ir_r2_k5_s2_e3_c24_se0.25"], ["cn_r1_k1_s1_c40"]]
    rows = (
        (separable(16, 3, 2, se=0.25, activation="relu"),),
        (inverted(24, 5, 2, 3, repeats=2, se=0.25),),
        (conv(40, 1),),
    )
    reference = MobileNetV3(
        decode_arch_def(words),
        num_classes=10,
        num_features=64,
        act_layer=torch.nn.Hardswish,
        se_layer=functools.partial(
            TimmSqueezeExcite,
            gate_layer="hard_sigmoid",
            force_act_layer=torch.nn.ReLU,
            rd_round_fn=round_channels,
        ),
        global_pool="catavgmax",
    )
    model = InvertedResidualNet(
        rows,
        stem_features=16,
        head_features=64,
        head="pool_first",
        activation="hard_swish",
        gate=squeeze_inside,
        num_classes=10,
        global_pool="catavgmax",
    )
    name = "pool first"
    check(record_property, name, model, reference, size=(35, 52), dtype="float64", naming="timm")


@pytest.mark.parametrize(
    ("name", "naming", "size", "dtype"),
    [
        ("test_efficientnet", "timm", (64, 64), "float32"),
        ("mobilenet_v2", "torchvision", (33, 32), "float32"),
        ("mobilenet_v3_small", "torchvision", (32, 33), "float64"),
    ],
    ids=str,
)
def test_small_networks_are_the_references(name, naming, size, dtype, record_property):
    model, reference = create_model(name), references(name)[naming]
    check_logits(record_property, name, model, reference, size=size, dtype=dtype, naming=naming)


@pytest.mark.parametrize(
    ("name", "naming"), [("mobilenet_v3_small", "torchvision"), ("mobilenetv3_small_050", "timm")]
)
def test_the_naming_is_found(name, naming):
    reference = references(name)[naming]
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    found = weights.load(create_model(name), state, X.shape)
    named = weights.load(create_model(name), state, X.shape, naming)
    jax.tree.map(np.testing.assert_array_equal, found, named)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mobilenetv3_small_100", "mobilenet_v3_small"),
        pytest.param("tf_mobilenetv3_small_100", "mobilenet_v3_small", marks=pytest.mark.slow),
        pytest.param("efficientnetv2_s", "efficientnet_v2_s", marks=pytest.mark.slow),
        pytest.param("efficientnet_b5", "efficientnet_b5", marks=pytest.mark.slow),
    ],
)
def test_torchvision_s_weights_do_not_load_into_another_function(name, theirs):
    with torch.device("meta"):
        reference = torchvision.models.get_model(theirs)
    state = {key: np.zeros(tensor.shape, "f4") for key, tensor in reference.state_dict().items()}
    with pytest.raises(InputError, match="the weights do not fit"):
        weights.load(create_model(name), state, X.shape)


@pytest.mark.parametrize("attention", ["cbam", "global_context", "se"])
def test_weights_of_other_attention_go_there_and_back(attention):
    placement = {"name": attention, "reduction": 4, "stages": (1, 4)}
    model = TINY.clone(attention=placement, context="global_context")
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes_of(model)
    )
    tensors = weights.to_torch(variables, "timm", module=model)
    assert len(tensors) == len(jax.tree.leaves(variables))
    back = weights.load(model, tensors, X.shape, "timm")
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def own_size(name):
    """Pixels along either side of the images that the network was made for."""
    if timm.is_model(name):
        return timm.models.get_pretrained_cfg(name, allow_unregistered=False).input_size[1]
    return 224


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("size", ["own", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_references(name, size, dtype, record_property):
    side = own_size(name)
    size = (side, side) if size == "own" else (65, 97)
    for naming, reference in references(name).items():
        model = create_model(name)
        check_logits(record_property, name, model, reference, size=size, dtype=dtype, naming=naming)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_efficientnet_lite0", "lcnet_035"])
def test_features_have_the_stated_channels_and_strides(name):
    model = create_model(name)
    x = jax.ShapeDtypeStruct((2, 65, 96, 1), jnp.float32)
    run = functools.partial(model.apply, method="features")
    assert [m.shape for m in jax.eval_shape(run, shapes_of(model, x), x)] == [
        (2, -(-65 // stride), -(-96 // stride), channels)
        for channels, stride in zip(model.feature_channels, model.feature_strides, strict=True)
    ]
    assert model.feature_strides == (2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({}, 64),
        ({"global_pool": "catavgmax"}, 128),
        ({"head_features": 0}, 56),
        ({"head": "pool_first"}, 64),
    ],
    ids=str,
)
def test_without_classes_the_answer_is_what_the_classifier_would_see(fields, width):
    model = TINY.clone(num_classes=0, **fields)
    variables = shapes_of(model)
    assert "classifier" not in variables["params"]
    answer = jax.eval_shape(model.apply, variables, X)
    assert (answer.shape, answer.dtype) == ((2, width), jnp.float32)


@pytest.mark.parametrize("head", ["conv_first", "pool_first"])
def test_bfloat16_computes_narrow_and_answers_float32(head):
    model = TINY.clone(head=head, dtype=jnp.bfloat16)
    variables = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), variables, X)
    assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}
    assert jax.eval_shape(model.apply, variables, X).dtype == jnp.float32
    narrow = TINY.clone(head=head, param_dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)
    logits, variables = jax.eval_shape(narrow.init_with_output, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    assert logits.dtype == jnp.float32


class Nothing(nn.Module):
    """Takes the place of a norm."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __call__(self, x, train=False):
        return x


def test_drop_path_leaves_out_whole_residual_branches():
    block = InvertedResidualBlock(inverted(4, 3, 1, 2), jax.nn.relu, Nothing, drop_path=0.25)
    x = jax.random.normal(jax.random.key(0), (64, 3, 3, 4))
    variables = jax.jit(block.init)(jax.random.key(1), x)
    branch = block.apply(variables, x) - x
    dropped = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)}) - x
    factors = np.sum(dropped * branch, axis=(1, 2, 3)) / np.sum(branch**2, axis=(1, 2, 3))
    np.testing.assert_allclose(dropped, factors[:, None, None, None] * branch, atol=1e-5)
    kept = np.isclose(factors, 4 / 3, atol=1e-4)
    assert np.all(kept | np.isclose(factors, 0, atol=1e-4))
    assert 36 <= kept.sum() <= 60


def test_drop_path_grows_linearly():
    bound = TINY.clone(drop_path=0.8).bind({})
    rates = [block.drop_path for i in range(5) for block in getattr(bound, f"blocks_{i}")]
    reference = EfficientNet(decode_arch_def(WORDS), drop_path_rate=0.8)
    theirs = [
        getattr(block.drop_path, "drop_prob", 0.0) for stage in reference.blocks for block in stage
    ]
    np.testing.assert_allclose(rates, theirs)


def test_dropout_acts_in_train_mode_only():
    model = InvertedResidualNet(
        ((conv(8, 1),),), stem_features=8, head_features=32, num_classes=4, dropout=0.5
    )
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)  # needs no rng of its own

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 1e-3


def test_initial_kernels_are_tensorflows():
    stages = ((edge(32, 3, 1, 2, group_size=16), inverted(40, 5, 1, 2, experts=3)),)
    model = InvertedResidualNet(
        stages, stem_features=32, head_features=64, expert_conv=CondConv, num_classes=400
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert np.std(params["conv_head"]["kernel"]) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    depthwise = params["blocks_0_1"]["conv_dw"]["kernels"]
    assert np.std(depthwise) == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    grouped = params["blocks_0_0"]["conv_exp"]["kernel"]
    assert np.std(grouped) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.05)
    assert np.abs(params["classifier"]["kernel"]).max() == pytest.approx(0.05, rel=0.01)
    assert np.abs(params["blocks_0_1"]["routing_fn"]["kernel"]).max() == pytest.approx(
        (32 + 3) ** -0.5, rel=0.05
    )


def test_scaling_rounds_widths_and_shares_repeats():
    stages = (
        (separable(16, 3, 1),),
        (inverted(24, 3, 2, 6), inverted(24, 3, 1, 3, repeats=4)),
        (inverted(40, 5, 2, 6, repeats=2),),
    )
    wider = scale_width(stages, 1.1)
    assert [row.features for stage in wider for row in stage] == [16, 24, 24, 48]
    assert [row.features for stage in scale_width(stages, 0.35) for row in stage] == [8, 8, 8, 16]

    def repeats(scaled):
        return [tuple(row.repeats for row in stage) for stage in scaled]

    assert repeats(scale_depth(stages, 1.4)) == [(2,), (1, 6), (3,)]
    assert repeats(scale_depth(stages, 1.4, fix_ends=True)) == [(1,), (1, 6), (2,)]
    assert repeats(scale_depth(stages, 0.6, rounding=round)) == [(1,), (1, 2), (1,)]
    assert repeats(scale_depth(stages, (1, 2, 1))) == [(1,), (2, 8), (2,)]


# Which blocks have attention, and which one.

EVERY = {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)}
GATED = {(0, 0), (1, 0), (1, 1), (3, 0), (3, 1)}


def attention_in(model):
    """{(stage, block): names of the parameters of its attention layer}."""
    return {
        tuple(int(i) for i in block.removeprefix("blocks_").split("_")): set(children["se"])
        for block, children in shapes_of(model)["params"].items()
        if block.startswith("blocks_") and "se" in children
    }


OWN = {"fc1", "fc2"}
ECA = {"conv"}


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (None, dict.fromkeys(GATED, OWN)),
        (False, {}),
        ("eca", dict.fromkeys(GATED, ECA)),
        (EfficientChannel, dict.fromkeys(GATED, ECA)),
        ({"name": "eca", "position": "out"}, dict.fromkeys(GATED, ECA)),
        ({"name": "eca", "stages": 2}, dict.fromkeys(GATED, OWN) | {(1, 0): ECA, (1, 1): ECA}),
        ({"name": "eca", "blocks": "all"}, dict.fromkeys(EVERY, ECA)),
        (Placement(EfficientChannel), dict.fromkeys(EVERY, ECA)),
        (
            {"name": "eca", "stages": (3, 4), "blocks": (1,)},
            dict.fromkeys(GATED, OWN) | {(2, 1): ECA, (3, 1): ECA},
        ),
        (
            {"name": "eca", "stages": (4, 5), "blocks": "last"},
            dict.fromkeys(GATED, OWN) | {(3, 1): ECA, (4, 1): ECA},
        ),
    ],
)
def test_attention_takes_the_place_of_the_architectures(attention, expected):
    assert attention_in(TINY.clone(attention=attention)) == expected


def test_networks_without_attention_get_it_everywhere():
    stages = ((separable(8, 3, 1),), (inverted(8, 3, 2, 2, repeats=2),))
    model = InvertedResidualNet(stages, attention="eca")
    assert attention_in(model) == dict.fromkeys({(0, 0), (1, 0), (1, 1)}, ECA)


class Probe(nn.Module):
    """Triples its input, and sows what it saw."""

    role: ClassVar[str] = "recalibrate"

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("intermediates", "seen", x)
        return 3 * x


@pytest.mark.parametrize("position", ["mid", "out"])
def test_attention_stands_where_it_says(position):
    spec = inverted(8, 3, 1, 2)
    block = InvertedResidualBlock(spec, jax.nn.relu, BatchNorm, attention=Probe, position=position)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 8))
    variables = jax.jit(block.init)(jax.random.key(1), x)
    y, moved = block.apply(variables, x, mutable=["intermediates"], capture_intermediates=True)
    inner = moved["intermediates"]
    (seen,) = inner["se"]["seen"]
    (mid,), (last,) = inner["bn2"]["__call__"], inner["bn3"]["__call__"]
    np.testing.assert_array_equal(seen, jax.nn.relu(mid) if position == "mid" else last)
    factor = 3 if position == "out" else 1
    np.testing.assert_allclose(y, x + factor * last, rtol=1e-6, atol=1e-6)


def test_context_stands_after_the_add():
    model = TINY.clone(context={"name": "global_context", "stages": (2, 4)})
    params = shapes_of(model)["params"]
    assert [b for b, children in params.items() if "context" in children] == [
        "blocks_1_1",
        "blocks_3_1",
    ]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention": SelectiveKernel}, "sk replaces a convolution"),
        ({"attention": {"name": "eca", "share": True}}, "share=True: the blocks of a stage differ"),
        ({"attention": {"name": "eca", "after": "conv1_1"}}, "only VGG's convolutions go by such"),
        ({"attention": {"name": "eca", "position": "in"}}, "position 'in'"),
        ({"attention": {"name": "eca", "stages": 6}}, "the backbone has stages 1 to 5"),
        ({"attention": SqueezeExcite()}, "one layer whose weights all blocks would share"),
        ({"head": "first"}, "unknown head 'first'.*conv_first, pool_first"),
        ({"padding": "valid"}, "unknown padding 'valid'.*same, symmetric"),
        ({"global_pool": "mean"}, "unknown global_pool 'mean'.*avg, avgmax, catavgmax, max"),
        ({"activation": "swish"}, "unknown activation 'swish'.*hard_swish"),
        ({"stages": ((BlockSpec("mixed", 8),),)}, "unknown kind 'mixed'.*Known: conv, edge, inv"),
        ({"stages": ((conv(8, 1), conv(8, 3, 2)),)}, "strides and is not the first row of its"),
        ({"stages": ((),)}, "makes no network: use a row or more"),
        ({"num_classes": -1}, "num_classes=-1 is below 0"),
        ({"stem_features": 0}, "stem_features=0 is below 1"),
        ({"gate": None}, "a row of the table has `se`: pass gate="),
        ({"expert_conv": None}, "the table has `experts`: pass expert_conv="),
        ({"dropout": 1.0}, r"dropout=1.0 must be 0 or more, and below 1"),
        ({"drop_path": -0.1}, r"drop_path=-0.1 must be 0 or more"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        TINY.clone(**fields)


def test_models_can_be_static_arguments_and_come_from_configs():
    model = create_model("efficientnet_b0", attention={"name": "eca", "stages": [2]})
    assert hash(model) == hash(model.clone())
    assert model == model.clone()
    rows = [[["separable", 16, 3, 1]], [["inverted", 24, [3, 5], 2, 6.0, 2]]]
    same = ((separable(16, 3, 1),), (inverted(24, (3, 5), 2, 6.0, 2),))
    assert hash(InvertedResidualNet(rows)) == hash(InvertedResidualNet(same))
    assert InvertedResidualNet(ConfigDict({"stages": rows}).stages) == InvertedResidualNet(same)
