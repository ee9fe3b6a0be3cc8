import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import LinearContext
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case
from tests.torch_reference import linear_context

CASES = [
    Case(("lct", "lct.changzy00"), {}, lambda: linear_context.LCT(32, 8), "changzy00"),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_zero_weights_give_one_gate_for_all(x):
    layer = LinearContext(scale_init=nn.initializers.zeros, bias_init=nn.initializers.ones)
    y = layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x)
    assert parity.difference(y, jax.nn.sigmoid(1.0) * x) < 1e-6


def test_groups_do_not_see_each_other():
    layer = LinearContext(groups=4)
    pooled = jax.random.normal(jax.random.key(0), (1, 16))
    variables = layer.init(jax.random.key(1), jnp.zeros((1, 1, 1, 16)))
    reach = jax.jacobian(lambda z: layer.apply(variables, z, method="gate")[0])(pooled)[:, 0]
    group = np.arange(16) // 4
    np.testing.assert_array_equal(np.asarray(reach) != 0, np.equal.outer(group, group))


def test_one_channel_a_group_leaves_the_bias_only(x):
    layer = LinearContext(groups=32)
    y = layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x)
    np.testing.assert_array_equal(y, 0.5 * x)


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(LinearContext())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"groups": 5}, "groups=5 does not divide 12 channels: use one of 1, 2, 3, 4, 6, 12"),
        ({"groups": 0}, "groups=0 does not divide 12 channels"),
        ({"groups": -2}, "groups=-2 does not divide 12 channels"),
        ({"groups": 4, "epsilon": 0.0}, "^epsilon=0.0 is not above zero: use such as 1e-5"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        LinearContext(**fields).init(jax.random.key(0), jnp.ones((1, 4, 4, 12)))


def test_bfloat16():
    contract.check_bfloat16(LinearContext())
