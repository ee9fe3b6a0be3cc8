"""Polarized self-attention: parity of three sources, where each takes its softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import PolarizedAttention
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import polarized

CASES = [
    Case(("polarized",), {}, lambda: polarized.PolarizedPaper(32), "fightingcv"),
    Case(
        ("polarized, sequential",),
        {"sequential": True},
        lambda: polarized.PolarizedPaper(32, sequential=True),
        "fightingcv",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(("polarized.official_parallel",), {}, lambda: polarized.PSAp(32), "official"),
    Case(("polarized.official_sequential",), {}, lambda: polarized.PSAs(32), "official"),
]

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def gates(layer, variables, x=X):
    return contract.sown(layer, variables, x)[1]["attention"][0]


def test_each_softmax_is_another_function():
    layers = [
        PolarizedAttention(spatial_softmax=softmax) for softmax in ("query", "value", "result")
    ]
    variables = layers[0].init(jax.random.key(1), X)
    query, value, result = (gates(layer, variables)["spatial"] for layer in layers)
    for one, other in ((query, value), (query, result), (value, result)):
        assert abs(one - other).max() > 1e-3
    energy = np.log(result / (1 - result))
    np.testing.assert_allclose(energy.sum((1, 2, 3)), 1, rtol=1e-4)  # a distribution


def test_the_parallel_authors_spatial_gate_is_nearly_one_half():
    """0.50006 to 0.515 on 14x14 (mechanisms, B4)."""
    x = jax.random.normal(jax.random.key(0), (2, 14, 14, 32))
    layer = PolarizedAttention.official_parallel()
    spatial = gates(layer, jax.jit(layer.init)(jax.random.key(1), x), x)["spatial"]
    assert 0.5 < spatial.min() < spatial.max() < 0.52


@pytest.mark.parametrize(("sequential", "factor"), [(False, 1.0), (True, 0.25)])
def test_zero_kernels(sequential, factor):
    """Both gates are 1/2: the sum of the branches is x, their product a quarter of it."""
    layer = PolarizedAttention(
        sequential=sequential, qv_init=nn.initializers.zeros, kernel_init=nn.initializers.zeros
    )
    y = layer.apply(jax.jit(layer.init)(jax.random.key(1), X), X)
    np.testing.assert_array_equal(y, factor * X)


@pytest.mark.parametrize("sequential", [False, True])
def test_the_gates_are_what_is_sown(sequential):
    layer = PolarizedAttention(sequential=sequential)
    variables = jax.jit(layer.init)(jax.random.key(1), X)
    both = gates(layer, variables)
    channel, spatial = both["channel"][:, None, None, :], both["spatial"]
    factor = channel * spatial if sequential else channel + spatial
    np.testing.assert_allclose(layer.apply(variables, X), X * factor, rtol=1e-5)


def test_in_sequence_the_spatial_gate_reads_the_rescaled_map():
    parallel, sequential = PolarizedAttention(), PolarizedAttention(sequential=True)
    variables = jax.jit(parallel.init)(jax.random.key(1), X)
    one, other = gates(parallel, variables), gates(sequential, variables)
    np.testing.assert_array_equal(one["channel"], other["channel"])
    assert abs(one["spatial"] - other["spatial"]).max() > 1e-3
    alone = gates(parallel, variables, X * one["channel"][:, None, None, :])["spatial"]
    np.testing.assert_allclose(other["spatial"], alone, rtol=1e-5)


@pytest.mark.parametrize("variant", PolarizedAttention.variants)
def test_the_authors_draw_queries_and_values_by_their_fan_in(variant):
    layer = getattr(PolarizedAttention, variant)()
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, 256)))["params"]
    for name, leaves in params.items():
        if "_q_" in name or "_v_" in name:
            assert abs(leaves["kernel"].var() * 256 / 2 - 1) < 0.25
        elif "kernel" in leaves:
            fan_in = leaves["kernel"].shape[2]
            assert abs(leaves["kernel"]).max() <= fan_in**-0.5


def test_parameter_count():
    """2C^2 + C of the authors' parallel one (mechanisms, B4)."""
    x = jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32)
    layer = PolarizedAttention.official_parallel()
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == 2 * 64 * 64 + 64


@pytest.mark.parametrize(
    ("layer", "channels", "sentence"),
    [
        (PolarizedAttention(spatial_softmax="key"), 8, "unknown spatial_softmax 'key'"),
        (PolarizedAttention(up="mlp"), 8, "unknown up 'mlp'"),
        (PolarizedAttention(), 1, "1 channels are too few .* use at least 2"),
        (PolarizedAttention.official_sequential(), 7, "7 channels are too few .* at least 8"),
    ],
)
def test_refuses(layer, channels, sentence):
    with pytest.raises(InputError, match=sentence):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, channels)))


@pytest.mark.parametrize("variant", PolarizedAttention.variants)
def test_bfloat16(variant):
    contract.check_bfloat16(getattr(PolarizedAttention, variant)(), same_gate=False)
