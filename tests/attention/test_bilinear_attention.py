"""BAT: parity with the paper's block and timm's, the two matrices, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn.attention import BilinearAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import bilinear_attention
from tests.torch_reference.torchvision_shim import timm

# Batch norm takes these biases away again in train mode. It multiplies what rounding leaves of
# their gradients, for it divides averages of many positions by their small deviation: measured were
# 3e-5 of the largest gradient in float32, 2e-13 in float64.
BEFORE_NORM = (
    "conv1.0.bias",
    "batransform.conv1.0.bias",
    "batransform.conv2.0.bias",
    "conv2.0.bias",
)
CASES = [
    Case(
        ("bat",),
        {},
        lambda: bilinear_attention.BATBlock(32),
        "official",
        on=Inputs(maps=((14, 7),), refused=((13, 7), (1, 1))),
        cancelled=BEFORE_NORM,
    ),
    Case(
        ("bat, use_bias=False",),
        {"use_bias": False},
        lambda: bilinear_attention.BATBlock(32, bias=False),
        "official",
        on=Inputs(maps=((14, 7), (7, 7))),
    ),
    Case(
        ("bat, one block",),
        {"use_bias": False, "block_size": 1},
        lambda: bilinear_attention.BATBlock(32, size=1, bias=False),
        "official",
        on=Inputs(maps=((1, 1),)),
    ),
    Case(  # random dropout is no matter of comparison
        ("bat.official",),
        {"block_size": 4, "drop_rate": 0.0},
        lambda: bilinear_attention.BATBlock(32, size=4),
        "official",
        on=Inputs(maps=((12, 8),), refused=((13, 7), (1, 1))),
        cancelled=BEFORE_NORM,
    ),
    # Seed 0 has such a maximum at 56x56: float32 gradients are 1.4e-2 from float64's in torch, and
    # in XLA or not as it fuses.
    Case(
        ("bat.timm",),
        {"drop_rate": 0.0},
        lambda: bilinear_attention.timm_block(32),
        "timm",
        on=Inputs(maps=((56, 56), (14, 7)), refused=((13, 7), (1, 1))),
        seed=1,
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 8, 12, 32))


def test_matrices_average_blocks_of_rows_and_columns(x):
    layer = BilinearAttention(block_size=4)
    _, sown = contract.sown(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    matrices = sown["ba"]["attention"][0]
    assert matrices["rows"].shape == matrices["columns"].shape == (2, 4, 4, 4)
    np.testing.assert_allclose(matrices["rows"].sum(-1), np.ones((2, 4, 4)), rtol=1e-5)
    np.testing.assert_allclose(matrices["columns"].sum(-2), np.ones((2, 4, 4)), rtol=1e-5)
    assert np.std(matrices["rows"].sum(-2)) > 1e-3


def test_biases_before_batch_statistics_change_nothing(x):
    layer = BilinearAttention(block_size=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    plain, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    variables["params"]["conv1"]["conv"]["bias"] += 3.0
    variables["params"]["ba"]["conv2"]["conv"]["bias"] += 3.0
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, plain, rtol=1e-3, atol=1e-3)


def test_a_shared_maximum_s_gradient_goes_where_torch_sends_it():
    """Where x is the same so is what the maxima are taken of, with sums that need no rounding."""
    rng = np.random.default_rng(0)
    reference = bilinear_attention.BATBlock(32, size=2)
    parity.randomise(reference, rng)
    guide = reference.batransform.conv1[0].weight
    with torch.no_grad():
        reference.conv1[0].weight.copy_(torch.tensor(rng.integers(-2, 3, size=(16, 32, 1, 1))))
        guide.copy_(torch.eye(4, 16)[:, :, None, None])
    x = rng.integers(0, 3, size=(2, 6, 8, 1)) + np.zeros(32)
    with jax.enable_x64(True):
        layer = BilinearAttention(block_size=2, param_dtype=jnp.float64)
        found = parity.errors(layer, reference, x, False, "float64", "official", {})
    assert found["gradient"] <= parity.BOUNDS["float64"]["gradient"]


def test_no_last_layer_leaves_x(x):
    layer = BilinearAttention(block_size=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["conv2"]["bn"]["scale"] *= 0
    np.testing.assert_array_equal(layer.apply(variables, x), x)


def test_weights_that_all_but_vanish_are_no_nan(x):
    """sigmoid(-200) is zero in float32, and its share of the sum 0 / 0."""
    layer = BilinearAttention(block_size=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    bias = variables["params"]["ba"]["conv_p"]["bias"]
    variables["params"]["ba"]["conv_p"]["bias"] = jnp.full_like(bias, -200.0)
    y, gradient = jax.value_and_grad(lambda x: layer.apply(variables, x).sum())(x)
    assert jnp.isfinite(y)
    assert jnp.isfinite(gradient).all()


def test_dropout_takes_whole_channels_in_train_mode_only(x):
    layer = BilinearAttention.official(block_size=4, drop_rate=0.5)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    arguments = {"train": True, "mutable": ["batch_stats"]}
    y, _ = layer.apply(variables, x, rngs={"dropout": jax.random.key(2)}, **arguments)
    whole, _ = layer.clone(drop_rate=0.0).apply(variables, x, **arguments)
    added = np.abs(whole - x).max((1, 2)) > 1e-6
    dropped = np.abs(y - x).max((1, 2)) < 1e-6
    assert 0.3 < dropped[added].mean() < 0.7
    kept = ~dropped[:, None, None, :]
    np.testing.assert_allclose(y, np.where(kept, 2 * whole - x, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [32, 44, 100, 136])
def test_width_is_rounded_as_in_timm(features):
    layer = BilinearAttention.timm(block_size=4)
    x = jax.ShapeDtypeStruct((1, 4, 4, features), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    theirs = timm.layers.non_local_attn.BatNonLocalAttn(features)
    assert params["conv1"]["conv"]["kernel"].shape[-1] == theirs.conv1.conv.out_channels


def test_bfloat16():
    x = jax.random.normal(jax.random.key(0), (2, 8, 4, 32), jnp.bfloat16)
    layer = BilinearAttention(block_size=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y, gates = contract.sown(layer, variables, x)
    assert y.dtype == jnp.bfloat16
    assert all(gate.dtype == jnp.float32 for gate in jax.tree.leaves(gates))
    exact = layer.apply(variables, x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "block_size=7 must divide both the height and the width of a map, .* is 8x12"),
        ({"block_size": 0}, "block_size=0 must divide"),
        ({"block_size": 4, "groups": 3}, "groups=3 must divide the 16 channels"),
        ({"block_size": 4, "groups": 0}, "groups=0 must divide"),
        ({"block_size": 4, "reduction": 64}, "reduction=64 leaves no channel of 32"),
        ({"block_size": 4, "drop_rate": 1.5}, "drop_rate=1.5 must be a probability"),
    ],
)
def test_refuses(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        BilinearAttention(**fields).init(jax.random.key(0), x)
