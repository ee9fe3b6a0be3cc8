import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn.attention import StyleRecalibration
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs, per_sample
from tests.torch_reference import style_recalibration

# Exact: on large maps the statistics of four samples of noise are so alike that batch norm,
# dividing by their spread, magnifies rounding. At 56x56 torch's gradient of cfc is 1.5e-4 off in
# float32.
CASES = [
    Case(
        ("srm", "srm.official"),
        {},
        lambda: style_recalibration.SRMLayer(32),
        "official",
        on=Inputs(maps=((56, 56), (13, 7), (1, 2)), refused=((1, 1),)),
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("srm.changzy00",),
        {},
        lambda: style_recalibration.SRMPort(32),
        "changzy00",
        on=Inputs(maps=((13, 7),), refused=((1, 1),)),
        refuses=per_sample,
        exact=True,
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_it_starts_by_halving_the_input(x):
    layer = StyleRecalibration()
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_the_port_starts_as_a_convolution_over_two_statistics(x):
    (cfc,) = (StyleRecalibration.changzy00().init(jax.random.key(1), x)["params"].pop("cfc"),)
    theirs = torch.nn.Conv1d(4096, 4096, 2, groups=4096, bias=False).weight.detach().numpy()
    assert 0.6 < abs(cfc).max() <= 2**-0.5
    assert 0.6 < abs(theirs).max() <= 2**-0.5


def test_a_channel_s_gate_reads_that_channel_alone(x):
    layer = StyleRecalibration.changzy00()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    _, before = contract.sown(layer, variables, x)
    _, after = contract.sown(layer, variables, x.at[..., 3].multiply(2))
    changed = (before["attention"][0] != after["attention"][0]).any(0)
    np.testing.assert_array_equal(changed, np.arange(32) == 3)


@pytest.mark.parametrize("variant", ["official", "changzy00"])
def test_constant_channels_have_finite_gradients(variant):
    x = jnp.full((2, 4, 4, 8), 3.0)
    layer = getattr(StyleRecalibration, variant)()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    gradient = jax.grad(lambda x: layer.apply(variables, x).sum())(x)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("fields", "size", "sentence"),
    [
        ({}, (1, 1), "a map of 1x1 has no variance over its positions: use one of at least 2"),
        ({"epsilon": -1.0}, (4, 4), "epsilon=-1.0 is below zero"),
    ],
)
def test_refuses(fields, size, sentence):
    with pytest.raises(InputError, match=sentence):
        StyleRecalibration(**fields).init(jax.random.key(0), jnp.ones((2, *size, 8)))


def test_bfloat16():
    contract.check_bfloat16(StyleRecalibration.changzy00())
