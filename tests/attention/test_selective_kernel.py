"""Selective kernels: parity with and without the softmax, branch weights, strides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import weights
from flaxattn.attention.selective_kernel import SelectiveKernel
from flaxattn.conv import Conv
from flaxattn.errors import InputError
from tests.attention import parity
from tests.torch_reference import selective_kernel as reference


def case(shape=(2, 6, 5, 16), **fields):
    layer = SelectiveKernel(16, reduction=4, **fields)
    x = jax.random.normal(jax.random.key(1), shape)
    return layer, layer.init(jax.random.key(0), x), x


def branches(variables, x):
    """The answers of the two convolutions."""
    return [
        Conv(16, 3, dilation=dilation).apply({"params": variables["params"][name]}, x)
        for name, dilation in (("conv3x3", 1), ("conv5x5", 2))
    ]


def test_strides_match_torch():
    torch_unit = reference.SkNet(16, ratio=4, softmax=True).eval()
    torch_unit.conv3x3.stride = torch_unit.conv5x5.stride = (2, 2)
    parity.randomise(torch_unit, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(2, 7, 10, 16)).astype(np.float32)
    layer = SelectiveKernel(16, strides=2, reduction=4)
    state = {key: value.numpy() for key, value in torch_unit.state_dict().items()}
    answer = layer.apply(weights.load(layer, state, x.shape, "articles"), jnp.asarray(x))
    with torch.no_grad():
        expected = torch_unit(torch.tensor(parity.to_nchw(x))).numpy()
    assert answer.shape == (2, 4, 5, 16)
    assert parity.difference(answer, parity.to_nhwc(expected)) <= 1e-5


def test_features_may_differ_from_the_input():
    layer = SelectiveKernel(24, reduction=4)
    x = jnp.ones((1, 4, 4, 16))
    assert layer.init_with_output(jax.random.key(0), x)[0].shape == (1, 4, 4, 24)


def test_equal_logits_average_the_branches():
    layer, variables, x = case()
    variables["params"]["fc2"]["kernel"] *= 0
    first, second = branches(variables, x)
    np.testing.assert_allclose(
        layer.apply(variables, x), (first + second) / 2, rtol=1e-5, atol=1e-6
    )


def test_article_with_zero_logits_answers_zero():
    layer, variables, x = case(softmax=False)
    variables["params"]["fc2"]["kernel"] *= 0
    np.testing.assert_array_equal(layer.apply(variables, x), np.zeros_like(x))


def test_variants_differ_on_the_same_weights():
    layer, variables, x = case()
    article = SelectiveKernel.article_s2(16, reduction=4)
    assert np.abs(layer.apply(variables, x) - article.apply(variables, x)).max() > 0.1


def test_weights_are_sown_and_sum_to_one_only_with_softmax():
    for softmax in (True, False):
        layer, variables, x = case(softmax=softmax)
        answer, sown = layer.apply(variables, x, mutable=["intermediates"])
        (gates,) = sown["intermediates"]["attention"]
        assert gates.shape == (2, 2, 16)
        assert np.allclose(gates.sum(1), 1, atol=1e-6) == softmax
        mixed = sum(
            gates[:, i, None, None, :] * branch for i, branch in enumerate(branches(variables, x))
        )
        np.testing.assert_allclose(answer, mixed, rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_float32_weights():
    layer, variables, x = case()
    x = (x + 100).astype(jnp.bfloat16)
    answer, sown = layer.apply(variables, x, mutable=["intermediates"])
    (gates,) = sown["intermediates"]["attention"]
    assert answer.dtype == jnp.bfloat16
    assert gates.dtype == jnp.float32
    exact = layer.apply(variables, x.astype(jnp.float32))
    assert parity.difference(answer.astype(jnp.float32), exact) < 0.02


def test_train_changes_nothing():
    layer, variables, x = case()
    np.testing.assert_array_equal(
        layer.apply(variables, x, train=True), layer.apply(variables, x, train=False)
    )


def test_refuses_a_reduction_that_leaves_no_channel():
    with pytest.raises(InputError, match="reduction=16 leaves no channel of 8"):
        SelectiveKernel(8).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
