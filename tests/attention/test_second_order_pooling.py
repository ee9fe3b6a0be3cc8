import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import SecondOrderPooling
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import second_order_pooling

CASES = [
    Case(
        ("gsop",),
        {"hidden": 16},
        lambda: second_order_pooling.GSoP(32, 16),
        "official",
    ),
    Case(
        ("gsop.official",),
        {"hidden": 16},
        lambda: second_order_pooling.GSoP(32, 16),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("gsop, strides",),
        {"hidden": 8, "strides": 2},
        lambda: second_order_pooling.GSoP(32, 8, 2),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_zero_kernels_halve_the_input(x):
    layer = SecondOrderPooling(hidden=8, kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_the_gate_ignores_where_things_are_but_not_how_they_vary_together(x):
    layer = SecondOrderPooling(hidden=8)
    variables = jax.jit(layer.init)(jax.random.key(1), x)

    def gate(x):
        return contract.sown(layer, variables, x)[1]["attention"][0]

    np.testing.assert_allclose(gate(x[:, ::-1]), gate(x), rtol=1e-5)
    mixed = x.at[..., 0].set(x[:, ::-1, :, 0])  # the same values in each channel
    assert abs(gate(mixed) - gate(x)).max() > 1e-3


def test_the_authors_draw_every_kernel_by_its_fan_out():
    x = jnp.zeros((1, 1, 1, 64))
    params = SecondOrderPooling.official(hidden=32).init(jax.random.key(0), x)["params"]
    fans = (("conv_for_DR", 32), ("row_conv_group", 32 * 128), ("fc_adapt_channels", 64))
    for name, fan_out in fans:
        assert abs(params[name]["kernel"].var() * fan_out / 2 - 1) < 0.15


def test_parameters_are_the_authors():
    """Cd + d, two norms of d, four convolutions of d in each row, and 4dC + C."""
    x = jax.ShapeDtypeStruct((1, 14, 14, 256), jnp.float32)
    params = jax.eval_shape(SecondOrderPooling().init, jax.random.key(0), x)["params"]
    expected = 256 * 128 + 128 + 2 * 2 * 128 + 4 * 128 * 128 + 4 * 128 + 4 * 128 * 256 + 256
    assert sum(p.size for p in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hidden": 0}, "hidden=0 is below one: use 1 or more, such as 128"),
        ({"hidden": 8, "strides": 0}, "strides=0 is below one"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        SecondOrderPooling(**fields).init(jax.random.key(0), jnp.ones((1, 4, 4, 8)))


def test_bfloat16():
    contract.check_bfloat16(SecondOrderPooling(hidden=8), same_gate=False)
