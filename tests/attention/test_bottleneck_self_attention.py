"""BoTNet's self-attention: parity with timm, chunks, one size of map, relative positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import BottleneckSelfAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference.torchvision_shim import timm

BottleneckAttn = timm.layers.bottleneck_attn.BottleneckAttn


def timm_layer(height, width, **fields):
    return lambda: BottleneckAttn(32, feat_size=(height, width), **fields)


CASES = [
    Case(
        ("botnet",),
        {"features": 32},
        timm_layer(13, 7, scale_pos_embed=True),
        "timm",
        on=Inputs(maps=((13, 7),), refused=((56, 56), (1, 1))),
        # timm's layer is for maps of one size
    ),
    Case(
        ("botnet.timm",),
        {"features": 32},
        timm_layer(13, 7),
        "timm",
        on=Inputs(maps=((13, 7),), refused=((56, 56), (1, 1))),
    ),
    Case(
        ("botnet.timm, 1x1",), {"features": 32}, timm_layer(1, 1), "timm", on=Inputs(maps=((1, 1),))
    ),
    Case(
        ("botnet.timm, 56x56",),
        {"features": 32},
        timm_layer(56, 56),
        "timm",
        on=Inputs(maps=((56, 56),)),
    ),
    Case(
        ("botnet.timm, strided, chunked",),
        {
            "features": 48,
            "strides": 2,
            "num_heads": 3,
            "qk_ratio": 0.4,
            "qkv_bias": True,
            "query_chunk": 7,
        },
        timm_layer(6, 10, dim_out=48, stride=2, num_heads=3, qk_ratio=0.4, qkv_bias=True),
        "timm",
        on=Inputs(maps=((6, 10),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_chunks_change_neither_values_nor_gradients(x):
    layer = BottleneckSelfAttention(32)
    variables = jax.jit(layer.init)(jax.random.key(1), x)

    def gradients(layer):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(layer.apply(*a))), (0, 1))(variables, x)

    chunked = gradients(layer.clone(query_chunk=4))
    for ours, full in zip(jax.tree.leaves(chunked), jax.tree.leaves(gradients(layer)), strict=True):
        assert parity.difference(ours, full) <= 1e-5


def test_positions_alone_look_where_their_table_says(x):
    """Without content, a large entry for the row above: each answer is a mean of that row."""
    layer = BottleneckSelfAttention(32, num_heads=1, qkv_bias=True, scale_pos_embed=False)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    params = variables["params"]
    kernel = params["qkv"]["kernel"]
    params["qkv"]["kernel"] = kernel.at[..., :64].set(0).at[0, 0, :, 64:].set(jnp.eye(32))
    params["qkv"]["bias"] = jnp.zeros(96).at[0].set(1.0)  # every query is the first unit vector
    params["pos_embed"] = {
        "height_rel": jnp.zeros((9, 32)).at[-1 + 4, 0].set(100.0),
        "width_rel": jnp.zeros((5, 32)),
    }
    above = jnp.broadcast_to(x[:, :-1].mean(2, keepdims=True), (2, 4, 3, 32))
    np.testing.assert_allclose(layer.apply(variables, x)[:, 1:], above, rtol=1e-5, atol=1e-6)


def test_another_size_of_map_is_refused_in_a_sentence(x):
    layer = BottleneckSelfAttention(32)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match=r"height_rel is \(9, 8\), made for a map of another size"):
        layer.apply(variables, jnp.zeros((1, 6, 3, 32)))


def test_strides_average_and_features_may_differ(x):
    x = x[:, :4, :2]
    layer = BottleneckSelfAttention(24, strides=2, num_heads=2)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    whole = layer.clone(strides=1).apply(variables, x)
    y = layer.apply(variables, x)
    assert y.shape == (2, 2, 1, 24)
    np.testing.assert_allclose(y[:, 1, 0], whole[:, 2:].mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_bfloat16():
    contract.check_bfloat16(BottleneckSelfAttention(32), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_heads": 3}, "num_heads=3 cannot share 32 channels"),
        ({"strides": 2}, "strides=2 must divide both .* here that is 5x3"),
        ({"strides": 0}, "strides=0 must divide"),
        ({"qk_ratio": 0.1, "num_heads": 16}, "qk_ratio=0.1 leaves none of 32 channels"),
        ({"qk_ratio": -1.0}, "qk_ratio=-1.0 leaves none"),
        ({"key_features": 0}, "key_features=0 is below one"),
        ({"query_chunk": 0}, "query_chunk=0 is below one"),
    ],
)
def test_refuses(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        BottleneckSelfAttention(32, **fields).init(jax.random.key(0), x)
