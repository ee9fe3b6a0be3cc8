"""One layer in several blocks: its weights, its cost, its state, and its names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import create_model, weights
from flaxattn.attention import (
    DenseImplicit,
)
from flaxattn.models import ResNet
from tests.models.probes import (
    X,
    answer,
    blocks_with,
    check_trains,
)


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
