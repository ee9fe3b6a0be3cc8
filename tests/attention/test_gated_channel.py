import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import GatedChannel
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import gated_channel

CASES = [
    Case(
        ("gated_channel", "gated_channel.official"),
        {},
        lambda: gated_channel.GatedChannel(32),
        "official",
    ),
    Case(
        ("gated_channel, l1",),
        {"embedding": "l1"},
        lambda: gated_channel.GatedChannel(32, "l1"),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


@pytest.mark.parametrize("embedding", ["l1", "l2"])
def test_at_first_it_is_the_identity(x, embedding):
    layer = GatedChannel(embedding=embedding)
    np.testing.assert_array_equal(layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), x)


@pytest.mark.parametrize("embedding", ["l1", "l2"])
def test_the_gate_depends_on_shares_not_on_the_size_of_x(x, embedding):
    layer = GatedChannel(embedding=embedding, scale_init=nn.initializers.ones)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y = layer.apply(variables, x)
    assert parity.difference(layer.apply(variables, 100 * x), 100 * y) < 1e-4
    assert abs(y - x).max() > 0.1


def test_zeros_have_finite_gradients():
    x = jnp.zeros((1, 4, 4, 8))
    layer = GatedChannel(scale_init=nn.initializers.ones)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    gradients = jax.grad(lambda v, x: layer.apply(v, x).sum(), (0, 1))(variables, x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"embedding": "l3"}, "unknown embedding 'l3': .* Known: l1, l2"),
        ({"epsilon": 0.0}, "epsilon=0.0 is not above zero"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        GatedChannel(**fields).init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))


def test_bfloat16():
    normal = nn.initializers.normal(1.0)
    contract.check_bfloat16(GatedChannel(scale_init=normal, bias_init=normal))
