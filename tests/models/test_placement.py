"""Each slot puts its layer where it says, and nowhere else."""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from flaxattn import ATTENTION, BatchNorm, Conv, InputError, create_model, weights
from flaxattn.attention import (
    CBAM,
    DenseImplicit,
    EfficientChannel,
    LambdaLayer,
    SelectiveKernel,
    SplitAttention,
    SqueezeExcite,
)
from flaxattn.models import ResNet
from flaxattn.models.place import place
from flaxattn.models.placement import Placement, Places

SIZES = (2, 1, 3)
PLACES = Places(SIZES)
X = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)


class Probe(nn.Module):
    """Scales its input by a parameter, and sows what it saw."""

    scale: float = 1.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    role: ClassVar[str] = "recalibrate"

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("intermediates", "seen", x)
        return x * self.param("scale", nn.initializers.constant(self.scale), (), self.param_dtype)


class ProbeConv(nn.Module):
    """A 3x3 convolution that sows what it saw, in train mode only."""

    features: int
    strides: int = 1
    activates: bool = False

    role: ClassVar[str] = "convolution"

    @nn.compact
    def __call__(self, x, train=False):
        if train:
            self.sow("intermediates", "seen", x)
        return Conv(self.features, 3, strides=self.strides, use_bias=False, name="inner")(x)


def blocks_with(model, name):
    """The blocks that have a submodule `name`, as (stage, block)."""
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    return {
        tuple(int(number) for number in block.removeprefix("layer").split("_"))
        for block, children in params.items()
        if name in children
    }


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


def answer(intermediates, *path):
    for name in path:
        intermediates = intermediates[name]
    (value,) = intermediates["__call__"]
    return value


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


def check_trains(model):
    """A train step can be traced, with gradients for all parameters, and logits come out."""
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, variables, x):
        logits, _ = model.apply(
            variables | {"params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        assert logits.shape == (2, 1000)
        return logits.sum()

    gradients = jax.eval_shape(jax.grad(loss), variables["params"], variables, x)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])


@pytest.mark.parametrize(
    "fields",
    [
        {
            "stage_sizes": (3,),
            "block": "basic",
            "attention": {"name": "se", "reduction": 4, "blocks": (0, 2)},
        },
        {
            "stage_sizes": (2,),
            "block": "bottleneck",
            "attention": {"name": "se", "reduction": 4, "position": "mid"},
            "context": {"name": "se", "reduction": 4, "blocks": "all"},
        },
    ],
    ids=["some-blocks", "mid-and-context"],
)
def test_a_shared_layer_is_one_layer_in_several_blocks(fields):
    """Its weights stand once; answers and the sum of gradients are those of a layer's copies."""
    slots = {"se": "attention", "context": "context"}
    apart = ResNet(width=8, num_classes=3, **fields)
    placed = {slot: {**fields[slot], "share": True} for slot in slots.values() if slot in fields}
    shared = ResNet(width=8, num_classes=3, **{**fields, **placed})
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = random_variables(shared, x)

    owners = {
        (f"layer{stage}_{block}", f"layer{stage}_{name}", name)
        for name, slot in slots.items()
        if slot in fields
        for stage, block in blocks_with(apart, name)
    }
    params = variables["params"]
    once = {layer for _, layer, _ in owners}
    assert 2 * len(once) == len(owners)
    assert once == {key for key in params if key.endswith(tuple(slots))}

    copies = {key: dict(child) for key, child in params.items() if key not in once}
    for block, layer, name in owners:
        copies[block][name] = params[layer]

    def answer_and_gradients(model, params):
        def loss(params):
            answer = model.apply(variables | {"params": params}, x)
            return jnp.sin(answer).sum(), answer

        step = jax.jit(jax.grad(loss, has_aux=True)).lower(params)
        return step.compile()(params)

    gradients, answered = answer_and_gradients(shared, params)
    gradients_apart, answered_apart = answer_and_gradients(apart, copies)
    assert_near(answered, answered_apart)
    parts = {layer: [] for layer in once}
    for block, layer, name in owners:
        parts[layer].append(gradients_apart[block].pop(name))
    for layer, (one, other) in parts.items():
        assert abs(one["fc2"]["kernel"] - other["fc2"]["kernel"]).max() > 0
        gradients_apart[layer] = jax.tree.map(jnp.add, one, other)
    jax.tree.map(assert_near, gradients, gradients_apart)


def random_variables(model, x):
    """Variables of a realistic size without a compilation; variances are positive."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.ndim < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, size=leaf.shape), leaf.dtype)
        fan_in = leaf.size / leaf.shape[-1]
        return jnp.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), x))


def assert_near(ours, theirs):
    scale = max(float(jnp.abs(theirs).max()), 1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)


def test_a_shared_layer_counts_once_a_stage():
    def count(**placement):
        model = create_model("resnet50", attention=placement)
        params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    plain = 25_557_032
    widths = (256, 512, 1024, 2048)
    one = [2 * c * (c // 16) + c + c // 16 for c in widths]
    assert count(name="se", share=True) == plain + sum(one)
    assert count(name="se") == plain + sum(n * se for n, se in zip((3, 4, 6, 3), one, strict=True))
    assert count(name="se", share=True, stages=3, blocks="last") == plain + one[2]


def test_a_shared_layers_state_is_carried_from_block_to_block():
    """DIANet: the gates of a stage are one sequence of steps, past a block without the layer."""
    placement = {"name": "dia", "share": True, "blocks": (0, 2)}
    model = ResNet((3,), "basic", width=8, stem="small", attention=placement)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = random_variables(model, x)
    capture = {"capture_intermediates": True, "mutable": ["intermediates"]}
    run = jax.jit(functools.partial(model.apply, **capture)).lower(variables, x)
    _, state = run.compile()(variables, x)
    intermediates = state["intermediates"]

    layer, own = DenseImplicit(), {"params": variables["params"]["layer1_se"]}
    seen = [answer(intermediates, f"layer1_{block}", "bn2") for block in (0, 2)]
    gates = intermediates["layer1_se"]["attention"]
    carry = layer.initial_carry(seen[0])
    for branch, gate in zip(seen, gates, strict=True):
        _, carry = layer.apply(own, branch, carry, method="step")
        np.testing.assert_allclose(gate, carry[0], rtol=1e-4)
    alone = layer.apply(own, seen[-1].mean((1, 2)), method="gate")
    assert abs(gates[-1] - alone).max() > 1e-3


@pytest.mark.parametrize("name", ["cbam", "dia", "self_attention"])
def test_shared_layers_train(name):
    check_trains(ResNet((2, 2), "bottleneck", width=16, attention={"name": name, "share": True}))


def test_a_shared_layers_weights_go_out_and_come_back():
    placement = {"name": "se", "variant": "article_s0", "share": True, "blocks": "all"}
    model = ResNet((2, 2), "basic", width=16, attention=placement, context=placement)
    assert ("layer2_se.fc.0", "layer2_se.fc1", "linear") in model.namings["articles"]
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("float32"), shapes)
    for naming, key, shape in (
        ("articles", "layer2_se.fc.0.weight", (2, 32)),
        (None, "layer1_context.fc2.weight", (16, 1, 1, 1)),
    ):
        tensors = weights.to_torch(variables, naming, module=model)
        assert tensors[key].shape == shape
        loaded = weights.load(model, tensors, X.shape)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)


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


@pytest.mark.parametrize(
    ("slot", "value", "sentence"),
    [
        ("attention", "sk", r"^sk replaces a convolution: pass conv=dict\(name='sk'\)\.$"),
        ("context", "sk", "sk replaces a convolution"),
        ("attention", {"name": "sk", "features": 64}, r"^sk replaces a convolution: pass conv="),
        ("conv", "se", r"^se keeps its input's shape.*pass attention=dict\(name='se'\)"),
        ("conv", "efficientnet_se", r"^efficientnet_se keeps its input's shape"),
        ("attention", "simplified_psa", "simplified_psa is a head"),
        ("attention", SqueezeExcite(), r"weights all blocks would share: pass the class"),
        ("attention", nn.Dense, "Dense does not say its role"),
        ("attention", 3, "=3 must be a"),
        ("attention", lambda **fields: Probe(**fields), "makes no layer"),
        ("attention", {"stages": (1,)}, "does not say which mechanism"),
        ("attention", "sse", "unknown attention 'sse': did you mean se"),
        ("attention", {"name": "se", "reducton": 4}, "field of se 'reducton': did you mean reduc"),
        ("attention", {"name": "se", "variant": "tim"}, "variant of se 'tim': did you mean timm"),
        ("attention", {"name": "se", "stages": (4,)}, "attention in stage 4.* stages 1 to 3"),
        ("attention", {"name": "se", "stages": 0}, "attention in stage 0"),
        (
            "attention",
            {"name": "se", "stages": ("abc",)},
            "attention in stage 'abc'.* stages 1 to 3",
        ),
        (
            "attention",
            {"name": "se", "stages": ()},
            r"stages=\(\) places nothing: use 'all' or",
        ),
        ("attention", {"name": "se", "blocks": ()}, r"blocks=\(\) places nothing"),
        ("context", Placement(Probe, blocks=[]), r"context blocks=\(\) places nothing"),
        ("attention", {"name": "se", "stages": 1.5}, "attention in stage 1.5"),
        ("attention", {"name": "se", "stages": None}, "attention in stage None"),
        (
            "attention",
            {"name": "se", "blocks": ("last",)},
            "block 'last' of stage 1.*blocks 0 to 1",
        ),
        ("attention", {"name": "se", "blocks": 0.5}, "block 0.5 of stage 1"),
        ("attention", {"name": "se", "parent": None}, "parent in the attention slot is for"),
        ("attention", {"name": "se", "stages": "last"}, "'all' or a tuple of 1 to 3"),
        ("attention", {"name": "se", "blocks": "first"}, "'all', 'last' or a tuple"),
        ("attention", {"name": "se", "blocks": (1,)}, "block 1 of stage 2.*blocks 0 to 0"),
        ("attention", {"name": "se", "blocks": -1}, "block -1 of stage 1"),
        ("attention", {"name": "se", "position": "middle"}, "position 'middle'.*mid"),
        ("attention", {"name": "se", "blocks": "gated"}, "blocks='gated': use 'all', 'last' or"),
        ("attention", {"name": "se", "after": "conv1"}, "after=.'conv1',.: only VGG's"),
        (
            "conv",
            {"name": "sk", "features": 8},
            "features in the conv slot is for the block to give",
        ),
        ("conv", {"name": "sk", "strides": 2}, "strides in the conv slot is for the block to give"),
        ("context", {"name": "se", "position": "out"}, "context has one position only"),
        ("attention", Placement(EfficientChannel, position="in"), "position 'in'"),
        ("conv", {"name": "sk", "share": True}, "share=True in the conv slot.*leave it out"),
        ("conv", Placement(ProbeConv, share=True), "share=True in the conv slot"),
        ("attention", {"name": "se", "share": "stage"}, "share='stage' must be True or False"),
        (
            "attention",
            {"name": "dia", "share": True, "position": "mid"},
            "position 'mid': DenseImplicit carries a state.*at position 'out' only",
        ),
        (
            "context",
            {"name": "dia", "share": True},
            "share=True in the context slot.* the attention slot at position 'out' only",
        ),
    ],
    # Only texts: others would show their addresses, and each worker of pytest-xdist has its own.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_placed_is_refused_in_a_sentence(slot, value, sentence):
    with pytest.raises(InputError, match=sentence):
        place(slot, value, PLACES)
    with pytest.raises(InputError, match=sentence):
        ResNet(SIZES, **{slot: value})


def test_role_counts_for_user_layers_too():
    class Unfinished(nn.Module):
        role: ClassVar[str] = "convolution"

    with pytest.raises(InputError, match="Unfinished replaces a convolution"):
        place("attention", Unfinished, PLACES)


def test_nothing_is_placed_for_none_and_false():
    assert place("attention", None, PLACES) is None
    assert place("attention", False, PLACES) is None
    assert create_model("resnet18", attention=False).attention is None
    assert create_model("seresnet18", attention=False).attention is False


@pytest.mark.parametrize(
    ("name", "stages", "sentence"),
    [
        ("mobilenetv3_large_100", (2,), r"stage 2 places nothing: .* in stages 3, 5, 6;"),
        ("tf_efficientnetv2_b0", (1, 2, 3), r"stage 1 places nothing: .* in stages 4, 5, 6;"),
        ("tf_efficientnetv2_b0", (4, 2), "stage 2 places nothing"),
    ],
)
def test_a_stage_that_has_no_block_to_place_in_is_refused(name, stages, sentence):
    """By default attention stands where the architecture has its own."""
    cbam = {"name": "cbam", "stages": stages}
    with pytest.raises(InputError, match=sentence):
        create_model(name, attention=cbam)
    assert create_model(name, attention={**cbam, "blocks": "all"}) != create_model(name)
    create_model(name, attention={"name": "cbam", "stages": (5, 6)})


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
