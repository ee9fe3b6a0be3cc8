"""Where PyTorch and JAX silently differ: one test for each of the twelve known traps.

Each shows that what the library uses is torch's function, and that the framework's obvious one is
not. docs/common-mistakes.md lists the traps for readers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from torch.nn import functional

from flaxattn import ATTENTION, BatchNorm, Conv, create_attention
from flaxattn.errors import InputError
from flaxattn.layers.norm import GroupNorm, LayerNorm
from flaxattn.layers.pooling import max_pool
from flaxattn.layers.resize import adaptive_average_pool, resize_bilinear, resize_nearest
from flaxattn.models.placement import Placement
from tests.attention.examples import fields

X = np.random.default_rng(0).normal(size=(2, 7, 5, 6)).astype(np.float32)


def in_torch(module, x=X):
    """A torch function of NCHW maps, for NHWC arrays."""
    y = module(torch.tensor(x.transpose(0, 3, 1, 2)))
    return y.detach().numpy().transpose(0, 2, 3, 1)


def same(ours, theirs):
    return np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_1_momentum_of_batch_normalisation():
    torch_norm = torch.nn.BatchNorm2d(6)
    in_torch(torch_norm)
    _, ours = BatchNorm().init_with_output(jax.random.key(0), X)
    _, ours = BatchNorm().apply(ours, X, train=True, mutable=["batch_stats"])
    assert same(ours["batch_stats"]["mean"], torch_norm.running_mean)
    flax_norm = nn.BatchNorm(use_running_average=False)
    _, flaxs = flax_norm.apply(
        jax.jit(flax_norm.init)(jax.random.key(0), X), X, mutable=["batch_stats"]
    )
    assert not same(flaxs["batch_stats"]["mean"], torch_norm.running_mean)


def test_2_the_running_variance_is_unbiased():
    torch_norm = torch.nn.BatchNorm2d(6, momentum=1.0)
    in_torch(torch_norm)
    variables = BatchNorm(momentum=0.0).init(jax.random.key(0), X)
    _, ours = BatchNorm(momentum=0.0).apply(variables, X, train=True, mutable=["batch_stats"])
    assert same(ours["batch_stats"]["var"], torch_norm.running_var)
    assert not same(X.var((0, 1, 2)), torch_norm.running_var)
    np.testing.assert_allclose(X.var((0, 1, 2)) * 70 / 69, torch_norm.running_var, rtol=1e-5)


def test_3_one_value_a_channel_is_refused():
    one = X[:1, :1, :1]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        in_torch(torch.nn.BatchNorm2d(6), one)
    variables = BatchNorm().init(jax.random.key(0), one)
    with pytest.raises(InputError, match="more than one value per channel"):
        BatchNorm().apply(variables, one, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("ours", "flaxs", "theirs"),
    [
        (LayerNorm(), nn.LayerNorm(), lambda x: functional.layer_norm(x.mT, (6,)).mT),
        (
            GroupNorm(num_groups=2),
            nn.GroupNorm(num_groups=2),
            lambda x: functional.group_norm(x, 2),
        ),
    ],
    ids=["layer", "group"],
)
def test_4_epsilon_of_the_other_norms(ours, flaxs, theirs):
    x = X[:, :, 0] * 1e-3  # (2, 7, 6), where epsilon is as large as the variance
    expected = theirs(torch.tensor(x.transpose(0, 2, 1))).numpy().transpose(0, 2, 1)
    assert same(ours.init_with_output(jax.random.key(0), x)[0], expected)
    assert not same(flaxs.init_with_output(jax.random.key(0), x)[0], expected)


def test_5_standard_deviations_are_unbiased():
    """SGE normalises by a standard deviation over the positions of a map, here of one channel."""
    x = X[:1, :, :, :1]
    layer = create_attention("sge", groups=1)
    variables = {"params": {"weight": jnp.ones(1), "bias": jnp.zeros(1)}}
    likeness = x * x.mean((1, 2), keepdims=True)

    def expected(ddof):
        centred = likeness - likeness.mean()
        return x / (1 + np.exp(-centred / (likeness.std(ddof=ddof) + 1e-5)))

    assert same(layer.apply(variables, x), expected(1))
    assert not same(layer.apply(variables, x), expected(0))


def test_6_of_tied_maxima_the_first_takes_the_gradient():
    """As in torch.max, AdaptiveMaxPool2d and flax's max_pool; torch.amax and jnp.max share it."""
    x = jnp.zeros((1, 2, 2, 1))
    ours = jax.grad(lambda x: max_pool(x).sum())(x)
    assert ours.flatten().tolist() == [1, 0, 0, 0]
    x_torch = torch.zeros(1, 1, 2, 2, requires_grad=True)
    functional.adaptive_max_pool2d(x_torch, 1).sum().backward()
    assert same(x_torch.grad.numpy().reshape(x.shape), ours)
    x_torch.grad = None
    x_torch.amax((2, 3)).sum().backward()
    assert x_torch.grad.flatten().tolist() == [0.25] * 4


def test_7_strided_convolutions_pad_on_both_sides():
    x = X[:, :6, :4]
    layer = Conv(3, 3, strides=2, use_bias=False)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1))
    expected = in_torch(lambda x: functional.conv2d(x, weight, stride=2, padding=1), x)
    assert same(layer.apply(variables, x), expected)
    flaxs = nn.Conv(3, (3, 3), strides=2, padding="SAME", use_bias=False)
    assert not same(flaxs.apply(variables, x), expected)


def test_8_resizing():
    nearest = in_torch(lambda x: functional.interpolate(x, (4, 3)))
    assert same(resize_nearest(X, (4, 3)), nearest)
    assert not same(jax.image.resize(X, (2, 4, 3, 6), "nearest"), nearest)
    bilinear = in_torch(lambda x: functional.interpolate(x, (4, 3), mode="bilinear"))
    assert same(resize_bilinear(X, (4, 3)), bilinear)
    assert not same(jax.image.resize(X, (2, 4, 3, 6), "bilinear"), bilinear)


def test_9_activations():
    assert same(jax.nn.hard_sigmoid(X), in_torch(functional.hardsigmoid))
    assert same(jax.nn.hard_swish(X), in_torch(functional.hardswish))
    assert same(jax.nn.gelu(X, approximate=False), in_torch(functional.gelu))
    assert not same(jax.nn.gelu(X), in_torch(functional.gelu))


def with_field(name):
    """The mechanisms whose class has a field of that name, holding one number."""
    return [
        attention
        for attention in ATTENTION
        for field in dataclasses.fields(Placement(ATTENTION[attention]).layer)
        if field.name == name and (field.default is None or isinstance(field.default, int))
    ]


@pytest.mark.parametrize("name", with_field("kernel_size"))
def test_10_even_kernels_are_refused(name):
    """Padding by k // 2 makes an even kernel's map one larger, by (k - 1) // 2 one smaller."""
    layer = create_attention(name, **fields(name) | {"kernel_size": 4})
    with pytest.raises(InputError, match="kernel_size=4"):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))


@pytest.mark.parametrize("name", with_field("reduction"))
def test_11_no_hidden_layer_of_no_width(name):
    """Torch's bias-free SE with 0 hidden channels halves its input without a word."""
    layer = create_attention(name, **fields(name) | {"reduction": 64})
    sentence, variables = "", {}
    try:
        variables = layer.init(jax.random.key(0), jnp.zeros((2, 8, 8, 32)))
    except InputError as error:
        sentence = str(error)
    assert not sentence or "reduction=64 leaves no channel of" in sentence
    assert all(leaf.size for leaf in jax.tree.leaves(variables))


def test_12_bins_of_adaptive_pooling_overlap():
    expected = in_torch(lambda x: functional.adaptive_avg_pool2d(x, (3, 2)))
    assert same(adaptive_average_pool(X, (3, 2)), expected)
    assert same(expected[:, 0, 0], X[:, 0:3, 0:3].mean((1, 2)))
    assert same(expected[:, 1, 0], X[:, 2:5, 0:3].mean((1, 2)))  # row 2 again
