import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn.attention import SpatialAttention
from flaxattn.attention.spatial_attention import channel_max
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import spatial_attention
from tests.torch_reference.torchvision_shim import timm

CASES = [
    Case(
        ("spatial",),
        {"kernel_size": 3},
        lambda: spatial_attention.SpatialAttentionArticle1(3, intended=True),
        "article_s1",
    ),
    Case(("spatial.article_s0",), {}, spatial_attention.SpatialGateArticle0, "article_s0"),
    Case(("spatial.article_s1",), {}, spatial_attention.SpatialAttentionArticle1, "article_s1"),
    Case(("spatial.official",), {}, spatial_attention.SpatialGateOfficial, "official"),
    Case(("spatial.timm",), {}, timm.layers.cbam.SpatialAttn, "timm"),
    Case(
        ("spatial.light",),
        {},
        timm.layers.cbam.LightSpatialAttn,
        "timm",
        on=Inputs(maps=((13, 7),)),
        exact=True,
    ),
    Case(
        ("spatial_separable", "spatial.separable"),
        {},
        spatial_attention.SeparableSpatialAttention,
        None,
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_one_kernel_serves_all_three_outputs(x):
    variables = SpatialAttention().init(jax.random.key(1), x)
    scaled, gates = contract.sown(SpatialAttention(), variables, x)
    gate = SpatialAttention.article_s0().apply(variables, x)
    silu = SpatialAttention.article_s1().apply(variables, x)
    assert gate.shape == silu.shape == (2, 5, 3, 1)
    np.testing.assert_array_equal(gates["attention"][0], gate)
    np.testing.assert_allclose(scaled, x * gate, rtol=1e-6)
    logits = jnp.log(gate / (1 - gate))
    np.testing.assert_allclose(silu, jax.nn.silu(logits), atol=1e-5)
    assert abs(silu - scaled).max() > 0.1


def test_pool_order_is_the_order_of_the_kernel_s_channels(x):
    mean_first, max_first = SpatialAttention(), SpatialAttention(pools=("max", "avg"))
    variables = jax.jit(mean_first.init)(jax.random.key(1), x)
    y = mean_first.apply(variables, x)
    assert abs(max_first.apply(variables, x) - y).max() > 1e-2
    swapped = jax.tree.map(lambda kernel: kernel[:, :, ::-1], variables)
    np.testing.assert_allclose(max_first.apply(swapped, x), y, rtol=1e-5)


def test_official_and_timm_differ_in_order_and_in_momentum(x):
    official, timm_like = SpatialAttention.official(), SpatialAttention.timm()
    variables = jax.jit(official.init)(jax.random.key(1), x)
    assert abs(official.apply(variables, x) - timm_like.apply(variables, x)).max() > 1e-2
    variance = [
        layer.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]["bn"][
            "var"
        ]
        for layer in (SpatialAttention.official(pools=("avg", "max")), timm_like)
    ]
    np.testing.assert_allclose((variance[1] - 1) / (variance[0] - 1), 10, rtol=1e-3)


def test_separating_the_convolution_saves_nothing_and_adds_no_function(x):
    def count(layer, **fields):
        params = layer(**fields).init(jax.random.key(1), x)["params"]
        return sum(p.size for p in jax.tree.leaves(params))

    separable = SpatialAttention.separable()
    assert (count(SpatialAttention.separable), count(SpatialAttention)) == (100, 98)
    assert count(SpatialAttention.separable, kernel_size=3) == 20

    params = jax.jit(separable.init)(jax.random.key(1), x)["params"]
    around, weigh = params["conv"]["kernel"], params["pointwise"]["kernel"]
    dense = around.swapaxes(2, 3) * weigh
    assert dense.shape == (7, 7, 2, 1)
    y = SpatialAttention().apply({"params": {"conv": {"kernel": dense}}}, x)
    np.testing.assert_allclose(separable.apply({"params": params}, x), y, rtol=1e-5)


def test_zero_kernel_halves_the_input(x):
    layer = SpatialAttention(kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_of_tied_maxima_the_first_takes_the_gradient_as_in_torch_max():
    x = np.zeros((1, 2, 1, 4), np.float32)  # after a ReLU whole positions are often zero
    x[0, 0, 0] = (0, 3, 3, 1)
    ours = jax.grad(lambda x: channel_max(x).sum())(x)

    def theirs(pool):
        y = torch.tensor(parity.to_channels_first(x), requires_grad=True)
        pool(y).sum().backward()
        return parity.to_channels_last(y.grad.numpy())

    np.testing.assert_array_equal(ours[0, :, 0], [(0, 1, 0, 0), (1, 0, 0, 0)])
    np.testing.assert_array_equal(ours, theirs(lambda y: y.max(1)[0]))
    shared = theirs(lambda y: y.amax(1))
    np.testing.assert_array_equal(shared[0, :, 0], [(0, 0.5, 0.5, 0), (0.25, 0.25, 0.25, 0.25)])


def test_what_it_cannot_do(x):
    def fails(match, **fields):
        with pytest.raises(InputError, match=match):
            SpatialAttention(**fields).init(jax.random.key(0), x)

    fails(r"kernel_size=6 .* use an odd one, such as 5 or 7", kernel_size=6)
    fails(r"unknown output 'scale': did you mean scaled\?", output="scale")
    fails(r"unknown pool 'mean': .* Known: avg, max", pools=("mean", "max"))
    fails(r"pools=\(\) leaves nothing to pool", pools=())
    fails("pools='avg' must be a sequence of strings", pools="avg")


def test_bfloat16():
    contract.check_bfloat16(SpatialAttention(kernel_init=nn.initializers.normal(0.002)))
