"""Article 3's residual block: its reduction, the residual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention.attention_residual import AttentionResidual
from flaxattn.attention.dual_attention import DualAttention
from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import attention_residual

CASES = [
    Case(
        ("sca_residual", "sca_residual.article_s3"),
        {},
        lambda: attention_residual.AttnResBlock(32),
        "articles",
    ),
    Case(
        ("sca_residual, reduction 4",),
        {"reduction": 4},
        lambda: attention_residual.AttnResBlock(32, reduction=4),
        "articles",
        on=Inputs(maps=((13, 7),)),
    ),
]


def case(**fields):
    layer = AttentionResidual(**fields)
    x = jax.random.normal(jax.random.key(1), (2, 6, 5, 16))
    return layer, jax.jit(layer.init)(jax.random.key(0), x), x


def test_other_reductions_are_honoured():
    _, variables, _ = case(reduction=4)
    assert variables["params"]["attn"]["channel_att_1"]["kernel"].shape == (1, 1, 16, 4)


def test_zero_convolution_is_identity():
    layer, variables, x = case()
    variables["params"]["conv"] = jax.tree.map(jnp.zeros_like, variables["params"]["conv"])
    np.testing.assert_array_equal(layer.apply(variables, x), x)


def test_is_the_convolution_of_dual_attention_plus_x():
    layer, variables, x = case()
    params = variables["params"]
    attended = DualAttention().apply({"params": params["attn"]}, x)
    expected = x + Conv(16, 3).apply({"params": params["conv"]}, attended)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-6, atol=1e-6)


def test_gates_are_sown_by_the_inner_layer():
    layer, variables, x = case()
    _, sown = layer.apply(variables, x, mutable=["intermediates"])
    (gates,) = sown["intermediates"]["attn"]["attention"]
    assert gates["channel"].shape == (2, 16)
    assert gates["spatial"].shape == (2, 6, 5, 1)


def test_bfloat16_answers_in_bfloat16_with_float32_gates():
    layer, variables, x = case()
    x = (x + 100).astype(jnp.bfloat16)
    answer, sown = layer.apply(variables, x, mutable=["intermediates"])
    assert answer.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(sown)} == {jnp.dtype("float32")}
    exact = layer.apply(variables, x.astype(jnp.float32))
    assert parity.difference(answer.astype(jnp.float32), exact) < 0.02
    layer = AttentionResidual(kernel_init=nn.initializers.normal(0.03))
    contract.check_bfloat16(layer, same_gate="channel")


def test_train_changes_nothing():
    layer, variables, x = case()
    np.testing.assert_array_equal(
        layer.apply(variables, x, train=True), layer.apply(variables, x, train=False)
    )


def test_refuses_a_reduction_that_leaves_no_channel():
    with pytest.raises(InputError, match="reduction=8 leaves no channel of 4"):
        AttentionResidual().init(jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
