"""Criss-cross attention: parity, whom a position attends to, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import CrissCross, SelfAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import criss_cross

CASES = [
    Case(("criss_cross",), {}, lambda: criss_cross.CrissCrossAttention(32, 2), "official"),
    Case(
        ("criss_cross.official",),
        {},
        lambda: criss_cross.CrissCrossAttention(32),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]


def case(shape, gamma=0.7, **fields):
    """A layer whose gamma is not zero, its variables, and an input."""
    layer = CrissCross(**fields)
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    variables["params"]["gamma"] = jnp.full((1,), gamma)
    return layer, variables, x


def test_zero_gamma_is_identity():
    layer, variables, x = case((2, 5, 3, 16), gamma=0.0)
    np.testing.assert_array_equal(layer.apply(variables, x), x)


def test_one_pass_is_self_attention_masked_to_the_cross():
    layer, variables, x = case((2, 5, 3, 16), gamma=1.0, recurrence=1)
    project = {
        name: (x @ conv["kernel"][0, 0] + conv["bias"].reshape(1, 1, 1, -1)).reshape(2, 15, -1)
        for name, conv in variables["params"].items()
        if name != "gamma"
    }
    row, column = np.divmod(np.arange(15), 3)
    cross = np.equal.outer(row, row) | np.equal.outer(column, column)
    energy = np.einsum("nqd,nkd->nqk", project["query_conv"], project["key_conv"])
    weights = jax.nn.softmax(jnp.where(cross[None], energy, -jnp.inf))
    expected = x + (weights @ project["value_conv"]).reshape(x.shape)
    assert parity.difference(layer.apply(variables, x), expected) < 1e-5


@pytest.mark.parametrize(("recurrence", "reached"), [(1, 5 + 7 - 1), (2, 5 * 7)])
def test_two_passes_reach_every_position(recurrence, reached):
    layer, variables, x = case((1, 5, 7, 16), recurrence=recurrence)
    gradient = jax.grad(lambda x: layer.apply(variables, x)[0, 2, 3].sum())(x)
    assert int((gradient != 0).any(axis=-1).sum()) == reached


def test_a_pass_sows_a_map_that_counts_the_position_once():
    layer, variables, x = case((2, 5, 3, 16))
    _, sown = contract.sown(layer, variables, x)
    assert len(sown["attention"]) == 2
    for weights in sown["attention"]:
        assert weights.shape == (2, 5, 3, 5 + 3)
        np.testing.assert_allclose(weights.sum(-1), np.ones((2, 5, 3)), rtol=1e-6)
        np.testing.assert_array_equal(weights[:, np.arange(5), :, np.arange(5)], 0)


def temporary_bytes(layer, side):
    """What XLA reserves for the value and all gradients, arguments and answers apart."""
    x = jax.ShapeDtypeStruct((1, side, side, 16), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return step.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_cross_not_with_the_map():
    small, large = (temporary_bytes(CrissCross(recurrence=1), side) for side in (32, 64))
    assert large < 9 * small  # HW (H + W) grows eightfold, (HW)^2 sixteenfold
    assert large < temporary_bytes(SelfAttention(), 64) / 8


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reduction": 32}, "reduction=32 leaves no channel of 16"),
        ({"recurrence": 0}, "recurrence=0 must be a number of passes: use 1 to 16"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        CrissCross(**fields).init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))


def test_bfloat16_keeps_a_float32_softmax():
    layer, variables, x = case((2, 5, 7, 16))
    x = (x + 30).astype(jnp.bfloat16)  # energies in the hundreds, where bfloat16 steps by one
    answer, sown = contract.sown(layer, variables, x)
    assert answer.dtype == jnp.bfloat16
    for weights in sown["attention"]:
        assert weights.dtype == jnp.float32
        np.testing.assert_allclose(weights.sum(-1), np.ones((2, 5, 7)), rtol=1e-5)
    exact = layer.apply(variables, x.astype(jnp.float32))
    assert parity.difference(answer.astype(jnp.float32), exact) < 0.03
