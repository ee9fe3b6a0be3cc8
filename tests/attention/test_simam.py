import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import SimAM
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import simam

CASES = [
    Case(
        ("simam", "simam.official"),
        {},
        simam.SimAM,
        "official",
        on=Inputs(maps=((56, 56), (13, 7), (1, 2)), refused=((1, 1),)),
    ),
    Case(
        ("simam.official_imagenet",),
        {},
        lambda: simam.SimAM(0.1),
        "official",
        on=Inputs(maps=((13, 7),), refused=((1, 1),)),
    ),
]


def test_it_has_no_parameters():
    assert SimAM().init(jax.random.key(0), jnp.ones((1, 4, 4, 8))) == {}


def test_constant_input_has_the_least_gate_and_a_finite_gradient():
    x = jnp.full((2, 4, 6, 8), 3.0)
    least = jax.nn.sigmoid(0.5)
    np.testing.assert_allclose(SimAM().apply({}, x), least * x, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: SimAM().apply({}, x).sum())(x), least, rtol=1e-6)


def test_what_stands_out_passes():
    x = jnp.ones((1, 4, 4, 2)).at[0, 1, 2, 0].set(9.0)
    _, sown = contract.sown(SimAM(), {}, x)
    (gate,) = sown["attention"]
    assert jnp.unravel_index(gate.argmax(), gate.shape) == (0, 1, 2, 0)
    assert gate.min() >= 0.62


@pytest.mark.parametrize(
    ("fields", "size", "sentence"),
    [
        ({}, (1, 1), "a map of 1x1 has no variance over its positions: use one of at least 2"),
        ({"e_lambda": 0.0}, (4, 4), "e_lambda=0.0 is not above zero"),
        ({"e_lambda": -1.0}, (4, 4), "e_lambda=-1.0 is not above zero"),
    ],
)
def test_refuses(fields, size, sentence):
    with pytest.raises(InputError, match=sentence):
        SimAM(**fields).init(jax.random.key(0), jnp.ones((1, *size, 8)))


def test_bfloat16():
    contract.check_bfloat16(SimAM())


def test_a_large_mean_costs_no_digits():
    x = 1000 + np.random.default_rng(0).normal(size=(2, 9, 7, 8))
    with jax.enable_x64():
        exact = SimAM().apply({}, jnp.asarray(x))
    assert parity.difference(SimAM().apply({}, jnp.asarray(x, jnp.float32)), exact) < 1e-4
