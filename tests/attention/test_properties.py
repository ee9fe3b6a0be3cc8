"""Whatever the input and the fields, a layer keeps its contract or says why not in one sentence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn.attention import ATTENTION, create_attention
from flaxattn.errors import InputError
from flaxattn.models.placement import Placement
from tests.attention.examples import fields

# Values to try for fields of these names, legal and illegal ones; other fields keep their defaults.
DRAWN = {
    "add_max": st.booleans(),
    "alpha": st.sampled_from([-0.1, 0, 0.5, 1, 1.5]),
    "attention_type": st.sampled_from(["1111", "1000", "0100", "0010", "0001", "0000", "01"]),
    "average_pools": st.booleans(),
    "block_size": st.integers(0, 5),
    "channels_per_group": st.integers(0, 9),
    "dct_size": st.sampled_from([None, 0, 6, 7, 16]),
    "depthwise": st.booleans(),
    "dilated": st.booleans(),
    "dilation": st.integers(0, 3),
    "divisor": st.sampled_from([None, 1, 4, 8]),
    "e_lambda": st.sampled_from([0.0, 1e-4]),
    "epsilon": st.sampled_from([-1.0, 0.0, 1e-5]),
    "extent": st.sampled_from([0, 2, 3, 4, 8]),
    "features": st.sampled_from([1, 4, 12, 16, 32]),
    "frequencies": st.sampled_from(["top1", "low4", "bot32", "top3"]),
    "gather": st.sampled_from(["mean", "conv"]),
    "groups": st.sampled_from([0, 1, 2, 3, 4, 8, 64]),
    "halo_size": st.integers(0, 3),
    "hidden": st.sampled_from([0, 1, 2, 8]),
    "hidden_features": st.sampled_from([0, 1, 4, 12]),
    "kernel_size": st.integers(0, 9),
    "kernel_sizes": st.sampled_from([(), (3,), (1, 3), (3, 5), (3, 4), (3, 5, 7, 9)]),
    "key_features": st.integers(0, 5),
    "kv_stride": st.integers(0, 3),
    "min_hidden": st.sampled_from([-1, 0, 1, 32]),
    "minimum": st.integers(0, 9),
    "mlp": st.booleans(),
    "no_spatial": st.booleans(),
    "num_descriptors": st.sampled_from([None, 0, 1, 5]),
    "num_experts": st.integers(0, 3),
    "num_groups": st.sampled_from([0, 1, 2, 8, 16, 32]),
    "num_heads": st.sampled_from([0, 1, 2, 3, 4, 8]),
    "num_kernels": st.integers(0, 3),
    "order": st.sampled_from(["channel_spatial", "spatial_channel", "1"]),
    "padding": st.sampled_from(["zeros", "circular", "1"]),
    "port_width": st.booleans(),
    "q_stride": st.integers(0, 3),
    "qk_ratio": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    "query_chunk": st.sampled_from([None, 0, 1, 5, 1000]),
    "radix": st.integers(0, 3),
    "recurrence": st.integers(0, 3),
    "reduction": st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64]),
    "shared": st.booleans(),
    "shift_size": st.integers(0, 3),
    "shrink_factor": st.integers(0, 3),
    "similar": st.booleans(),
    "skip": st.booleans(),
    "spatial_softmax": st.sampled_from(["query", "value", "result"]),
    "split_input": st.booleans(),
    "state_features": st.sampled_from([None, 0, 5]),
    "strides": st.integers(0, 3),
    "up": st.sampled_from(["norm", "linear", "bottleneck"]),
    "use_bias": st.booleans(),
    "width": st.sampled_from([0.0, 2.0, (1.0, 4.0), (4.0, 1.0)]),
    "window_size": st.integers(0, 5),
}
# Fields of the same name that mean something else in a single layer.
OF_LAYER = {("cond_conv", "padding"): st.sampled_from([None, -1, 0, 1])}
MAPS = st.sampled_from([(1, 1), (1, 5), (2, 2), (3, 4), (4, 4), (5, 2), (8, 8)])
CHANNELS = st.sampled_from([1, 2, 3, 8, 12, 32, 64])


def drawn_fields(data, name):
    """Values for the fields of `name`: of each that DRAWN knows and that is drawn or required."""
    drawn = {}
    for field in dataclasses.fields(Placement(ATTENTION[name]).layer):
        required = field.name == "features"
        if field.name in DRAWN and (required or data.draw(st.booleans(), f"draw {field.name}")):
            values = OF_LAYER.get((name, field.name), DRAWN[field.name])
            drawn[field.name] = data.draw(values, field.name)
    return drawn


def expected_shape(layer, shape, drawn):
    if layer.role in ("recalibrate", "context"):
        return None if getattr(layer, "output", "scaled") != "scaled" else shape
    if layer.role == "head":
        return (*shape[:3], None)
    strides, size = drawn.get("strides", 1), drawn.get("kernel_size", 3)
    reach = drawn.get("dilation", 1) * (size - 1)
    # As many zeros around the map as keep its size, unless others are asked for.
    lost = 0 if drawn.get("padding") is None else reach - 2 * drawn["padding"]
    height, width = ((side - lost - 1) // strides + 1 for side in shape[1:3])
    return (shape[0], height, width, drawn["features"])


@pytest.mark.parametrize("name", ATTENTION)
@settings(max_examples=10)
@given(st.data())
def test_the_contract_or_a_sentence(name, data):
    """By abstract evaluation, which is quick: shapes, dtypes and errors."""
    drawn = drawn_fields(data, name)
    shape = (data.draw(st.integers(1, 2)), *data.draw(MAPS), data.draw(CHANNELS))
    train = data.draw(st.booleans(), "train")
    x = jax.ShapeDtypeStruct(shape, data.draw(st.sampled_from([jnp.float32, jnp.bfloat16])))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def run(key, x):
        layer = create_attention(name, **drawn)
        variables = layer.init(key, x)
        answer, _ = layer.apply(variables, x, train, mutable=["batch_stats"], rngs={"dropout": key})
        return answer

    try:
        answer = jax.eval_shape(run, key, x)
    except InputError as error:
        sentence = str(error)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert any(character.isdigit() for character in sentence), "it does not say the value"
        return
    assert answer.dtype == x.dtype
    expected = expected_shape(create_attention(name, **drawn), shape, drawn)
    if expected is not None:
        for ours, wanted in zip(answer.shape, expected, strict=True):
            assert wanted is None or ours == wanted


@functools.cache
def value_and_gradients(name, shape):
    """What a layer of random weights answers in train mode, its moved statistics, and its gradients
    by parameters and x; None if it refuses."""
    layer = create_attention(name, **fields(name))
    rngs = {"dropout": jax.random.key(0)}

    def run(params, statistics, x):
        def apply(params, x):
            variables = {"params": params, **statistics}
            return layer.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

        answer, pullback, moved = jax.vjp(apply, params, x, has_aux=True)
        return answer, moved, pullback(jnp.ones_like(answer))

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    rng = np.random.default_rng(1)
    try:
        variables = jax.tree.map(
            lambda leaf: abs(rng.normal(size=leaf.shape)).astype(leaf.dtype),
            jax.eval_shape(layer.init, jax.random.key(1), x),
        )
        params = variables.pop("params", {})
        compiled = jax.jit(run).lower(params, variables, x).compile()
    except InputError:
        return None
    return functools.partial(compiled, params, variables)


@pytest.mark.parametrize("size", [pytest.param((1, 1), marks=pytest.mark.slow), (4, 8)], ids=str)
@pytest.mark.parametrize("name", ATTENTION)
@settings(max_examples=10)
@given(
    st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 1.0, -100.0]),
)
def test_never_a_nan(name, size, scale, offset):
    """Numbers of any size, constants and zeros: answers and gradients are finite. A single position
    may be refused."""
    shape = (2, *size, 32)
    run = value_and_gradients(name, shape)
    if run is None:
        assert size == (1, 1)
        return
    x = offset + scale * np.random.default_rng(0).normal(size=shape)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(x.astype(np.float32))))
