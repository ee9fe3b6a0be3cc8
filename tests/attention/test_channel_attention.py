import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn.attention import ChannelAttention
from flaxattn.attention.channel_attention import l2_pool
from flaxattn.errors import InputError
from flaxattn.layers.pooling import max_pool
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import channel_attention
from tests.torch_reference.torchvision_shim import timm

ALL_POOLS = ("avg", "max", "lp", "lse")

CASES = [
    Case(
        ("channel",),
        {"reduction": 4},
        lambda: timm.layers.cbam.ChannelAttn(32, rd_ratio=1 / 4),
        "timm",
    ),
    Case(
        ("channel.article_s0",),
        {"reduction": 4},
        lambda: channel_attention.ChannelAttention(32, 4),
        "article_s0",
    ),
    Case(("channel.official",), {}, lambda: channel_attention.ChannelGate(32), "official"),
    Case(
        ("channel.official, all pools",),
        {"reduction": 4, "pools": ALL_POOLS},
        lambda: channel_attention.ChannelGate(32, 4, ALL_POOLS),
        "official",
    ),
    Case(
        ("channel.timm",),
        {"reduction": 3},
        lambda: timm.layers.cbam.ChannelAttn(32, rd_ratio=1 / 3),
        "timm",
    ),
    Case(
        ("channel.light",),
        {"reduction": 3},
        lambda: timm.layers.cbam.LightChannelAttn(32, rd_ratio=1 / 3),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("channel.light, SEModule with add_maxpool",),
        {"use_bias": True, "divisor": 8},
        lambda: timm.layers.SEModule(32, add_maxpool=True),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


ALL_POOLS = ("avg", "max", "lp", "lse")


def test_gate_times_input_is_the_scaled_output():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    scaled, gate = ChannelAttention(reduction=4), ChannelAttention.article_s0(reduction=4)
    variables = jax.jit(scaled.init)(jax.random.key(1), x)
    y, gates = contract.sown(scaled, variables, x)
    s = gate.apply(variables, x)
    assert s.shape == (2, 1, 1, 32)
    np.testing.assert_allclose(y, x * s, rtol=1e-6)
    np.testing.assert_array_equal(gates["attention"][0], s[:, 0, 0, :])


def test_zero_last_layer_halves_the_input():
    layer = ChannelAttention.official(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_the_biases_count_once_for_each_pool():
    layer = ChannelAttention.official(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["fc2"]["bias"] = jnp.full(32, 0.7)
    _, gates = contract.sown(layer, variables, x)
    np.testing.assert_allclose(gates["attention"][0], jax.nn.sigmoid(1.4), rtol=1e-6)


def test_pools_matter():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    variables = ChannelAttention().init(jax.random.key(1), x)
    answers = [ChannelAttention(pools=(pool,)).apply(variables, x) for pool in ALL_POOLS]
    for i, one in enumerate(answers):
        for other in answers[:i]:
            assert abs(one - other).max() > 1e-3


def test_hidden_width_is_floored_except_in_timm():
    def hidden(layer):
        x = jax.ShapeDtypeStruct((1, 1, 1, 40), jnp.float32)
        return jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["fc1"]["kernel"].shape[3]

    assert [hidden(ChannelAttention()), hidden(ChannelAttention.timm())] == [2, 3]


def test_of_tied_maxima_the_first_takes_the_gradient_as_in_adaptive_max_pool():
    x = np.zeros((1, 2, 3, 1), np.float32)
    x[0, 0, 1] = x[0, 1, 2] = 5
    ours = jax.grad(lambda x: max_pool(x).sum())(x)

    def theirs(pool):
        y = torch.tensor(parity.to_channels_first(x), requires_grad=True)
        pool(y).sum().backward()
        return parity.to_channels_last(y.grad.numpy())

    assert ours[0, 0, 1] == ours.sum() == 1
    np.testing.assert_array_equal(ours, theirs(torch.nn.AdaptiveMaxPool2d(1)))
    np.testing.assert_array_equal(x / 10, theirs(lambda y: y.amax((2, 3))))


def test_norm_of_a_dead_channel_has_gradient_zero():
    gradient = jax.grad(lambda x: l2_pool(x).sum())(jnp.zeros((1, 2, 3, 4)))
    np.testing.assert_array_equal(gradient, 0)


def test_what_it_cannot_do():
    x = jnp.zeros((1, 4, 4, 8))

    def fails(match, **fields):
        with pytest.raises(InputError, match=match):
            ChannelAttention(**fields).init(jax.random.key(0), x)

    fails(r"reduction=16 leaves no channel of 8")
    fails(r"unknown output 'gates': did you mean gate\?", output="gates")
    fails(r"unknown pool 'mean': .* Known: avg, lp, lse, max", pools=("mean", "max"))
    fails(r"pools=\(\) leaves nothing to pool", pools=())
    fails("pools='avg' must be a sequence of strings", pools="avg")


def test_bfloat16():
    contract.check_bfloat16(ChannelAttention(reduction=4, kernel_init=nn.initializers.normal(0.03)))
