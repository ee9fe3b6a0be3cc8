import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import GaussianContext
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import gaussian_context

CASES = [
    Case(("gct",), {}, gaussian_context.GaussianContext, None),
    Case(
        ("gct.learnable",),
        {},
        lambda: gaussian_context.GaussianContext((1.0, 4.0)),
        None,
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("gct.changzy00",),
        {},
        gaussian_context.GaussianContextPort,
        "changzy00",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_the_fixed_form_has_no_parameter_and_the_learnt_one_has_one(x):
    assert GaussianContext().init(jax.random.key(0), x) == {}
    variables = GaussianContext.learnable().init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["theta"], [0.0])


def test_the_learnt_width_starts_in_the_middle_and_stays_within_its_bounds(x):
    learnt = GaussianContext(width=(1.0, 3.0))
    variables = jax.jit(learnt.init)(jax.random.key(0), x)
    assert parity.difference(learnt.apply(variables, x), GaussianContext().apply({}, x)) < 1e-6
    for theta, width in ((-100.0, 1.0), (100.0, 3.0)):
        pushed = learnt.apply({"params": {"theta": jnp.array([theta])}}, x)
        assert parity.difference(pushed, GaussianContext(width=width).apply({}, x)) < 1e-6


def test_the_gate_is_one_at_the_mean_and_one_over_root_e_a_width_away():
    """Averages +-2 about 1: every channel is one standard deviation from the mean."""
    pooled = jnp.array([[3.0, -1.0, 3.0, -1.0]])
    gate = GaussianContext(width=1.0).apply({}, pooled, method="gate")
    np.testing.assert_allclose(gate, np.exp(-0.5), rtol=1e-4)
    port = GaussianContext.changzy00().apply({}, pooled, method="gate")
    np.testing.assert_allclose(port, np.exp(-1), rtol=1e-4)


def test_equal_averages_pass_unchanged_with_a_finite_gradient():
    x = jnp.full((2, 4, 4, 8), 3.0)
    np.testing.assert_array_equal(GaussianContext().apply({}, x), x)
    gradient = jax.grad(lambda x: GaussianContext().apply({}, x).sum())(x)
    np.testing.assert_array_equal(gradient, jnp.ones_like(x))


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(GaussianContext())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"width": 0.0}, "width=0.0 must be the width of a Gaussian"),
        ({"width": (4.0, 1.0)}, r"width=\(4.0, 1.0\) must be the width of a Gaussian"),
        ({"epsilon": 0.0}, "epsilon=0.0 and variance_epsilon=0.0 must not be below zero, nor both"),
        ({"epsilon": -1.0, "variance_epsilon": 2.0}, "epsilon=-1.0 and variance_epsilon=2.0 must"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        GaussianContext(**fields).init(jax.random.key(0), jnp.ones((1, 4, 4, 12)))


def test_bfloat16():
    contract.check_bfloat16(GaussianContext())
