"""Double attention: parity, what it does to a constant map, and independence within a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention.double_attention import DoubleAttention
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import FEATURES, Case, Inputs
from tests.torch_reference import double_attention

# The softmax over positions takes away what this bias adds.
CANCELLED = ("convB.bias",)

CASES = [
    Case(
        ("double_attention",),
        {"num_descriptors": 5},
        lambda: double_attention.DoubleAttention(FEATURES, 8, 5, residual=True),
        "changzy00",
        cancelled=CANCELLED,
    ),
    Case(
        ("double_attention.changzy00",),
        {},
        lambda: double_attention.DoubleAttention(FEATURES, 8, 8),
        "changzy00",
        on=Inputs(maps=((13, 7),)),
        cancelled=CANCELLED,
    ),
    Case(
        ("double_attention.xmu",),
        {"reduction": 2},
        lambda: double_attention.DoubleAttention(FEATURES, 16, 16, "conv_reconstruct"),
        "xmu",
        on=Inputs(maps=((13, 7),)),
        cancelled=CANCELLED,
    ),
]


def example(shape=(3, 5, 7, 16), **fields):
    layer = DoubleAttention(**fields)
    x = jax.random.normal(jax.random.key(0), shape)
    return layer, jax.jit(layer.init)(jax.random.key(1), x), x


def test_constant_map_is_projected_twice():
    """All descriptors are the one value there is, and mixtures of it are itself."""
    layer, variables, x = example()
    x = jnp.broadcast_to(x[:, :1, :1], x.shape)
    first, last = (variables["params"][name]["kernel"][0, 0] for name in ("convA", "proj"))
    np.testing.assert_allclose(layer.apply(variables, x), x + x @ first @ last, atol=1e-5)


def test_both_attentions_are_sown():
    layer, variables, x = example(num_descriptors=3)
    _, sown = contract.sown(layer, variables, x)
    (maps,) = sown["attention"]
    np.testing.assert_allclose(maps["gather"].sum((1, 2)), np.ones((3, 3)), rtol=1e-5)
    np.testing.assert_allclose(maps["distribute"].sum(-1), np.ones((3, 5, 7)), rtol=1e-5)


@pytest.mark.parametrize("variant", [DoubleAttention, DoubleAttention.xmu])
def test_answers_do_not_depend_on_batch_mates(variant):
    """In a widely copied port they do, for its softmaxes run over the batch."""
    x = jax.random.normal(jax.random.key(0), (3, 5, 7, 16))
    layer = variant()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    alone = layer.apply(variables, x[:1])
    np.testing.assert_allclose(layer.apply(variables, x)[:1], alone, rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_its_softmaxes_in_float32():
    contract.check_bfloat16(DoubleAttention(), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reduction": 32}, "reduction=32 leaves no channel of 16"),
        ({"num_descriptors": 0}, "num_descriptors=0 is below one"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        example(**fields)
