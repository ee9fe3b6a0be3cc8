"""Each slot puts its layer where it says, and nowhere else."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from flaxattn import ATTENTION, BatchNorm, InputError, create_model, weights
from flaxattn.attention import (
    CBAM,
    LambdaLayer,
    SelectiveKernel,
    SplitAttention,
)
from flaxattn.models import ResNet
from flaxattn.models.placement import Placement
from tests.models.probes import (
    SIZES,
    Probe,
    ProbeConv,
    X,
    answer,
    blocks_with,
    check_trains,
)

EVERY = {(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (3, 2)}
LAST = {(1, 1), (2, 0), (3, 2)}


@pytest.mark.parametrize(
    ("fields", "blocks"),
    [
        ({}, EVERY),
        ({"stages": (2, 3)}, {(2, 0), (3, 0), (3, 1), (3, 2)}),
        ({"stages": 3}, {(3, 0), (3, 1), (3, 2)}),
        ({"blocks": "last"}, LAST),
        ({"blocks": 0}, {(1, 0), (2, 0), (3, 0)}),
        ({"stages": [1, 3], "blocks": [1]}, {(1, 1), (3, 1)}),
        ({"stages": (3,), "blocks": (0, 2)}, {(3, 0), (3, 2)}),
    ],
)
@pytest.mark.parametrize("as_config", [dict, ConfigDict])
def test_stages_and_blocks_choose_the_blocks(fields, blocks, as_config):
    model = ResNet(SIZES, "basic", width=16, attention=as_config({"name": "se", **fields}))
    assert blocks_with(model, "se") == blocks


@pytest.mark.parametrize(
    ("slot", "value", "name", "blocks"),
    [
        ("attention", Probe, "se", EVERY),
        ("context", Probe, "context", LAST),
        ("context", "se", "context", LAST),
        ("context", {"name": "se", "blocks": "all"}, "context", EVERY),
        ("attention", functools.partial(Probe, scale=2.0), "se", EVERY),
        ("attention", CBAM.official, "se", EVERY),
        ("attention", functools.partial(CBAM.official, reduction=4), "se", EVERY),
        ("attention", Placement(Probe, stages=2), "se", {(2, 0)}),
    ],
    ids=str,
)
def test_slots_take_factories_names_and_placements(slot, value, name, blocks):
    model = ResNet(SIZES, "basic", width=16, **{slot: value})
    assert blocks_with(model, name) == blocks


def seen_by(model):
    """What the model's layers saw and answered in train mode."""
    x = jax.random.normal(jax.random.key(1), X.shape)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    # At initialisation all branches are alike: tell the parameters apart.
    leaves, tree = jax.tree.flatten(variables["params"])
    leaves = [leaf * (1 + 0.1 * math.sin(i)) for i, leaf in enumerate(leaves)]
    variables = variables | {"params": jax.tree.unflatten(tree, leaves)}
    run = jax.jit(
        functools.partial(
            model.apply,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
    )
    _, moved = run(variables, x)
    return moved["intermediates"]


def only_block(stage, block, position="out"):
    """A layer that triples what it sees, in one block."""
    return Placement(functools.partial(Probe, 3.0), (stage,), (block,), position)


@pytest.mark.parametrize(("block", "last_norm"), [("basic", "bn2"), ("bottleneck", "bn3")])
def test_attention_stands_between_the_last_norm_and_the_add(block, last_norm):
    intermediates = seen_by(ResNet((2, 2), block, width=4, attention=only_block(2, 1)))
    inner = intermediates["layer2_1"]
    (seen,) = inner["se"]["seen"]
    np.testing.assert_array_equal(seen, answer(inner, last_norm))
    assert_sum(answer(inner), answer(intermediates, "layer2_0"), answer(inner, "se"))
    assert_moves(answer(inner, "se"), seen)


@pytest.mark.parametrize(
    ("block", "middle_norm", "last_norm"), [("basic", "bn1", "bn2"), ("bottleneck", "bn2", "bn3")]
)
def test_attention_in_the_mid_follows_the_middle_relu(block, middle_norm, last_norm):
    intermediates = seen_by(ResNet((2, 2), block, width=4, attention=only_block(2, 1, "mid")))
    inner = intermediates["layer2_1"]
    (seen,) = inner["se"]["seen"]
    np.testing.assert_array_equal(seen, jax.nn.relu(answer(inner, middle_norm)))
    assert_sum(answer(inner), answer(intermediates, "layer2_0"), answer(inner, last_norm))
    assert_moves(answer(inner, "se"), seen)


def assert_sum(block, shortcut, branch):
    np.testing.assert_allclose(block, jax.nn.relu(shortcut + branch), rtol=1e-5, atol=1e-5)


def assert_moves(answered, seen):
    np.testing.assert_allclose(answered, 3 * seen, rtol=0.5)
    assert float(jnp.abs(answered - seen).max()) > 1


def test_context_sees_the_block_after_add_and_relu():
    intermediates = seen_by(ResNet((2, 2), "basic", width=4, context=only_block(1, 1)))
    inner = intermediates["layer1_1"]
    (seen,) = inner["context"]["seen"]
    assert_sum(seen, answer(intermediates, "layer1_0"), answer(inner, "bn2"))
    np.testing.assert_array_equal(answer(inner), answer(inner, "context"))
    assert_moves(answer(inner), seen)


@pytest.mark.parametrize(
    ("block", "index", "before"), [("basic", 1, None), ("bottleneck", 2, "bn1")]
)
def test_conv_replaces_the_middle_convolution(block, index, before):
    fields = {"stage_sizes": (1, 1), "block": block, "width": 4}
    intermediates = seen_by(ResNet(**fields, conv=ProbeConv))
    inner = intermediates["layer2_0"]
    (seen,) = inner[f"conv{index}"]["seen"]
    expected = (
        answer(intermediates, "layer1_0") if before is None else jax.nn.relu(answer(inner, before))
    )
    np.testing.assert_array_equal(seen, expected)
    middle = answer(inner, f"conv{index}")
    assert middle.shape[1] == seen.shape[1] // 2
    assert middle.shape[-1] == 8


@pytest.mark.parametrize(
    ("conv", "has_norm"),
    [
        (ProbeConv, True),
        (functools.partial(ProbeConv, activates=True), False),
        (functools.partial(SelectiveKernel, groups=1), False),
        (SelectiveKernel.article_s2, True),
        (SplitAttention, False),
        (functools.partial(SplitAttention, norm=None), True),
        (LambdaLayer, True),  # whose norms are of queries and values
    ],
)
def test_a_conv_that_activates_takes_the_place_of_the_blocks_norm(conv, has_norm):
    model = ResNet((1, 1), width=16, conv=Placement(conv, stages=(2,)))
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    assert ("bn2" in params["layer2_0"]) == has_norm
    assert "bn2" in params["layer1_0"]


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        ("attention", {"name": "spatial", "variant": "article_s1"}),
        ("attention", {"name": "channel", "variant": "article_s0", "position": "mid"}),
        ("context", {"name": "channel", "variant": "article_s0"}),
    ],
)
def test_a_layer_that_returns_its_gates_is_refused(slot, value):
    model = ResNet((1,), "basic", width=32, **{slot: value})
    with pytest.raises(InputError, match=r"returns \(.*\) for a map \(2, 16, 16, 32\): in a block"):
        jax.eval_shape(model.init, jax.random.key(0), X)


def test_dtypes_reach_the_layers_unless_the_placement_sets_them():
    placement = Placement(functools.partial(Probe, dtype=jnp.float16))
    made = placement.with_defaults(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, norm=BatchNorm)()
    assert made.dtype == jnp.float16
    assert made.param_dtype == jnp.bfloat16

    model = ResNet(
        (1, 1), "basic", width=16, attention="se", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    assert params["layer1_0"]["se"]["fc1"]["kernel"].dtype == jnp.bfloat16


def roles(*names):
    return [name for name, make in sorted(ATTENTION.items()) if Placement(make).layer.role in names]


# What a layer needs beside its defaults in these networks of 64 channels and maps of 7 x 2^n.
FIELDS = {"halo": {"block_size": 7}, "shuffle": {"groups": 16}}


@pytest.mark.parametrize(
    ("slot", "position", "block"),
    [
        ("attention", "mid", "bottleneck"),
        pytest.param("context", "", "basic", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", roles("recalibrate", "context"))
def test_every_layer_works_in_the_branch_and_after_the_add(name, slot, position, block):
    placement = {"name": name, **({"position": position} if position else {})}
    placement |= FIELDS.get(name, {})
    check_trains(create_model("resnet10", stage_sizes=(1, 1), block=block, **{slot: placement}))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("name", roles("convolution"))
def test_every_convolution_works_in_place_of_the_middle_one(name, block):
    conv = {"name": name, **FIELDS.get(name, {})}
    check_trains(create_model("resnet10", stage_sizes=(1, 1), block=block, conv=conv))


def test_namings_are_held_to_the_slots_submodules():
    model = create_model("resnet10", attention="cbam", conv="sk", context={"name": "se"})
    assert ("se.ca", "se.channel") in model.namings["article_s0"]
    assert model.namings["articles"] == (
        ("conv1.conv3x3", "conv1.paths_0.conv"),
        ("conv1.conv5x5", "conv1.paths_1.conv"),
        ("conv1.fc.0", "conv1.attn.fc_reduce", "linear"),
        ("conv1.fc.2", "conv1.attn.fc_select", "linear"),
        ("context.fc.0", "context.fc1", "linear"),
        ("context.fc.2", "context.fc2", "linear"),
    )
    bottleneck = create_model("resnet50", conv="sk")
    assert bottleneck.namings["articles"][0] == ("conv2.conv3x3", "conv2.paths_0.conv")


def test_a_models_weights_go_out_and_come_back_under_a_layers_naming():
    model = ResNet((1, 1), "basic", width=16, attention={"name": "se", "variant": "article_s0"})
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("float32"), shapes)
    tensors = weights.to_torch(variables, "articles", module=model)
    assert tensors["layer2.0.se.fc.0.weight"].shape == (2, 32)
    assert tensors["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert tensors["layer1.0.conv1.weight"].shape == (16, 16, 3, 3)
    loaded = weights.load(model, tensors, X.shape)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def attention_in(model):
    """What the attention of each block is made of, by the block's name."""
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    layers = ("se", "se_module")
    return {
        block: set(children[layer])
        for block, children in params.items()
        for layer in layers
        if layer in children
    }


@pytest.mark.parametrize(
    ("name", "last"),
    [("seresnet18", 4), ("legacy_seresnet18", 4), ("regnety_002", 4), ("efficientnet_b0", 7)],
)
def test_blocks_where_nothing_is_placed_keep_the_architectures_own(name, last):
    """The same in every family; False leaves it out everywhere."""
    own = attention_in(create_model(name))
    mixed = attention_in(create_model(name, attention={"name": "cbam", "stages": last}))
    assert mixed.keys() == own.keys()
    changed = {block for block in own if mixed[block] != own[block]}
    assert all(mixed[block] == {"channel", "spatial"} for block in changed)
    assert changed == {block for block in own if block.startswith(last_stage(name, last))}
    assert attention_in(create_model(name, attention=False)) == {}


def last_stage(name, last):
    prefix = {"seresnet18": "layer", "legacy_seresnet18": "layer", "regnety_002": "s"}.get(name)
    return f"{prefix}{last}_" if prefix else f"blocks_{last - 1}_"


def test_weights_of_two_kinds_of_attention_go_there_and_back():
    model = create_model("seresnet18", attention={"name": "cbam", "stages": 4, "variant": "timm"})
    variables = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), weights.abstract_variables(model, X.shape)
    )
    state = weights.to_torch(variables, "timm", module=model)
    assert {"layer1.0.se.fc1.weight", "layer4.0.se.spatial.conv.conv.weight"} <= state.keys()
    jax.tree.map(np.testing.assert_array_equal, weights.load(model, state, X.shape), variables)


def test_a_graft_into_a_network_with_its_own_attention_says_so():
    model = create_model("seresnet18")
    with pytest.raises(InputError, match=r"attention of its own there: .*use context"):
        create_model("seresnet18", attention={"name": "cbam", "graft": True})
    assert model.attention is None
