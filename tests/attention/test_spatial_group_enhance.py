"""Spatial group-wise enhancement: parity, its start, constant maps, single positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn.attention import SpatialGroupEnhance
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import spatial_group_enhance

CASES = [
    Case(
        ("sge", "sge.official"),
        {"groups": 8},
        lambda: spatial_group_enhance.SpatialGroupEnhance(8),
        "official",
        on=Inputs(maps=((56, 56), (13, 7), (1, 2)), refused=((1, 1),)),
    ),
]

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def with_weight(layer, value, x=X):
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["weight"] = jnp.full_like(variables["params"]["weight"], value)
    return variables


def test_it_starts_at_one_gate():
    layer = SpatialGroupEnhance(groups=8)
    np.testing.assert_allclose(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), X), X),
        X * jax.nn.sigmoid(1.0),
        rtol=1e-6,
    )


def test_the_logits_have_unit_deviation():
    """By the unbiased one; with weight 1 and bias 0 the logits are t itself."""
    layer = SpatialGroupEnhance(groups=8, bias_init=jax.nn.initializers.zeros)
    _, sown = contract.sown(layer, with_weight(layer, 1.0), X)
    gate = np.asarray(sown["attention"][0], np.float64)
    logits = np.log(gate / (1 - gate))
    np.testing.assert_allclose(logits.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(logits.std((1, 2), ddof=1), 1, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps_have_finite_gradients(value):
    """Those of torch, where rounding is not 1e5 times as large for the division by epsilon."""
    reference = spatial_group_enhance.SpatialGroupEnhance(8).double()
    torch.nn.init.ones_(reference.weight)
    theirs = torch.full((1, 32, 4, 4), value, dtype=torch.float64, requires_grad=True)
    reference(theirs).sum().backward()

    layer = SpatialGroupEnhance(groups=8)
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            x = jnp.full((1, 4, 4, 32), value, dtype)
            variables = with_weight(layer, 1.0, x)
            answer, pullback = jax.vjp(layer.apply, variables, x)
            gradients = pullback(jnp.ones_like(answer))
        assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    expected = theirs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-9)


def test_one_position_has_no_deviation():
    x = torch.ones(2, 32, 1, 1)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        answer = spatial_group_enhance.SpatialGroupEnhance(8)(x)
    assert torch.isnan(answer).all()
    with pytest.raises(InputError, match="a map of 1x1 has no standard deviation"):
        SpatialGroupEnhance(groups=8).init(jax.random.key(0), jnp.ones((2, 1, 1, 32)))


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (64, r"groups=64 does not divide 32 channels: use a divisor, such as 32\."),
        (12, r"groups=12 .* such as 8\."),
        (0, r"groups=0 .* such as 1\."),
        (-2, r"groups=-2 .* such as 1\."),
    ],
)
def test_refuses(groups, sentence):
    with pytest.raises(InputError, match=sentence):
        SpatialGroupEnhance(groups=groups).init(jax.random.key(0), X)


def test_bfloat16():
    layer = SpatialGroupEnhance(groups=8, kernel_init=jax.nn.initializers.ones)
    contract.check_bfloat16(layer)
