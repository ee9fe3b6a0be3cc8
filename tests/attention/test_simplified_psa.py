import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn.attention import SimplifiedPSA
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import simplified_psa
from tests.torch_reference import simplified_psa as reference

CASES = [
    Case(
        ("simplified_psa",),
        {"features": 24},
        lambda: simplified_psa.PSAModule(32, 24, "gather"),
        "articles",
    ),
    Case(
        ("simplified_psa, mix",),
        {"features": 24, "repair": "mix"},
        lambda: simplified_psa.PSAModule(32, 24, "mix"),
        "articles",
    ),
    *[
        Case(
            ("simplified_psa.article_s0",),
            {"features": height * width},
            lambda features=height * width: simplified_psa.PSAModule(32, features),
            "articles",
            on=Inputs(maps=((height, width),), refused=parity.MAPS),
            # by both sides: these have other numbers of positions
        )
        for height, width in ((16, 16), (13, 7), (4, 8), (1, 2))
    ],
]


@pytest.mark.parametrize("size", [(4, 4), (6, 4), (1, 1)])
def test_article_refuses_other_maps_as_torch_does(size):
    x = jnp.zeros((1, *size, 32))
    with pytest.raises(
        InputError, match=rf"features=32 positions, and {size[0]}x{size[1]} .*'mix'"
    ):
        SimplifiedPSA.article_s0(32).init(jax.random.key(0), x)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        reference.PSAModule(32, 32)(torch.zeros(1, 32, *size))


def test_unknown_repair():
    with pytest.raises(InputError, match=r"unknown repair 'mixed': did you mean mix\?"):
        SimplifiedPSA(32, repair="mixed").init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 4, 8, 16))


def reduced(layer, variables, x):
    _, state = layer.apply(variables, x, capture_intermediates=True)
    return state["intermediates"]["conv_reduce"]["__call__"][0]


def test_the_three_forms_differ_with_equal_weights(x):
    gather, mix = SimplifiedPSA(32), SimplifiedPSA(32, repair="mix")
    article = SimplifiedPSA.article_s0(32)
    variables = jax.jit(gather.init)(jax.random.key(1), x)
    answers = [layer.apply(variables, x) for layer in (gather, mix, article)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(answers[one] - answers[other]).max() > 1e-2


def test_article_adds_one_to_every_channel_in_total(x):
    layer = SimplifiedPSA.article_s0(32)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    added = layer.apply(variables, x) - reduced(layer, variables, x)
    np.testing.assert_allclose(added.sum((1, 2)), 1, rtol=1e-4)


def silenced(variables, *names):
    silent = {name: jax.tree.map(jnp.zeros_like, variables["params"][name]) for name in names}
    return {"params": {**variables["params"], **silent}}


def test_gathering_evenly_adds_the_average_to_every_position(x):
    layer = SimplifiedPSA(24)
    variables = silenced(jax.jit(layer.init)(jax.random.key(1), x), "collect")
    f = reduced(layer, variables, x)
    expected = f + f.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_mixing_evenly_adds_the_mean_of_the_channels(x):
    layer = SimplifiedPSA(24, repair="mix")
    variables = silenced(jax.jit(layer.init)(jax.random.key(1), x), "collect", "distribute")
    f = reduced(layer, variables, x)
    expected = f + f.mean(-1, keepdims=True)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_sown_maps_sum_to_one_over_the_positions_even_in_bfloat16(x):
    layer = SimplifiedPSA(24, kernel_init=nn.initializers.normal(1))
    x = x.astype(jnp.bfloat16)
    answer, maps = contract.sown(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    assert (answer.dtype, answer.shape) == (jnp.bfloat16, (2, 4, 8, 24))
    assert maps["attention"][0].dtype == jnp.float32
    assert maps["attention"][0].shape == (2, 4, 8, 24)
    np.testing.assert_allclose(maps["attention"][0].sum((1, 2)), 1, rtol=1e-5)
