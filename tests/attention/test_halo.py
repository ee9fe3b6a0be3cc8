"""Halo attention: parity with timm, what a position sees, strides, the map's edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import HaloAttention
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference.torchvision_shim import timm

HaloAttn = timm.layers.halo_attn.HaloAttn

CASES = [
    Case(
        ("halo", "halo.timm"),
        {"features": 32},
        lambda: HaloAttn(32),
        "timm",
        on=Inputs(maps=((16, 8),), refused=((13, 7), (1, 1))),
    ),
    Case(
        ("halo, a wide halo, strided queries",),
        {"features": 48, "strides": 2, "num_heads": 3, "block_size": 2, "qk_ratio": 0.4},
        lambda: HaloAttn(32, 48, stride=2, num_heads=3, block_size=2, qk_ratio=0.4),
        "timm",
        on=Inputs(maps=((8, 6),)),
    ),
    Case(
        ("halo, average_down",),
        {
            "features": 32,
            "strides": 2,
            "block_size": 4,
            "halo_size": 1,
            "average_down": True,
            "scale_pos_embed": True,
            "qkv_bias": True,
            "key_features": 5,
        },
        lambda: HaloAttn(
            32,
            stride=2,
            block_size=4,
            halo_size=1,
            avg_down=True,
            scale_pos_embed=True,
            qkv_bias=True,
            dim_head=5,
        ),
        "timm",
        on=Inputs(maps=((8, 12),)),
    ),
    Case(
        ("halo, blocks of one",),
        {"features": 32, "block_size": 1, "halo_size": 0},
        lambda: HaloAttn(32, block_size=1, halo_size=0),
        "timm",
        on=Inputs(maps=((1, 1),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 8, 12, 32))


@pytest.mark.parametrize(
    ("strides", "position", "rows", "columns"),
    [
        (1, (5, 6), (3, 8), (3, 9)),  # block (1, 1) of four by four, a halo of one, the edge
        (1, (0, 0), (0, 5), (0, 5)),
        (2, (2, 3), (3, 8), (3, 9)),
    ],
)
def test_a_position_sees_its_block_and_the_halo(x, strides, position, rows, columns):
    layer = HaloAttention(32, strides=strides, block_size=4, halo_size=1)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    gradient = jax.grad(lambda x: layer.apply(variables, x)[0][position].sum())(x)
    expected = np.zeros((8, 12), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(np.abs(gradient[0]).max(-1) > 0, expected)


def test_beyond_the_edge_zeros_take_their_share_of_the_weights():
    """One block of equal positions, without relative energies: 4 of 36 keys lie on the map."""
    layer = HaloAttention(32, block_size=2, halo_size=2)
    x = jnp.tile(jax.random.normal(jax.random.key(0), (1, 1, 1, 32)), (1, 2, 2, 1))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    params = variables["params"]
    params["q"]["kernel"] *= 0
    per_head = params["kv"]["kernel"].reshape(32, 8, 8)
    value = jnp.einsum("nhwc,cid->nhwid", x, per_head[..., 4:]).reshape(x.shape)
    np.testing.assert_allclose(layer.apply(variables, x), value * 4 / 36, rtol=1e-5, atol=1e-7)


def test_strided_queries_are_every_second_position_by_content(x):
    """Without relative energies; with them positions count differently (see the class)."""
    layer = HaloAttention(32, block_size=4, halo_size=1)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    tables = variables["params"]["pos_embed"]
    variables["params"]["pos_embed"] = jax.tree.map(jnp.zeros_like, tables)
    y = layer.apply(variables, x)
    strided = layer.clone(strides=2)
    np.testing.assert_allclose(strided.apply(variables, x), y[:, ::2, ::2], rtol=1e-5, atol=1e-6)
    variables["params"]["pos_embed"] = tables
    y = layer.apply(variables, x)
    assert np.abs(strided.apply(variables, x) - y[:, ::2, ::2]).max() > 1e-2


def test_strides_that_blocks_do_not_have_pool_instead(x):
    layer = HaloAttention(32, strides=2, block_size=1, halo_size=1)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    whole = layer.clone(strides=1).apply(variables, x)
    pooled = whole.reshape(2, 4, 2, 6, 2, 32).mean((2, 4))
    np.testing.assert_allclose(layer.apply(variables, x), pooled, rtol=1e-5, atol=1e-6)


def test_bfloat16(x):
    layer = HaloAttention(32, block_size=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y, sown = contract.sown(layer, variables, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert sown["attention"][0].dtype == jnp.float32
    np.testing.assert_allclose(sown["attention"][0].sum(-1), np.ones((2, 8, 6, 16)), rtol=1e-5)
    exact = layer.apply(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "block_size=8 must divide both the height and the width of a map, .* is 8x12"),
        ({"block_size": 0}, "block_size=0 must divide"),
        ({"block_size": 4, "strides": 3}, "strides=3 must divide"),
        ({"block_size": 4, "halo_size": -1}, "halo_size=-1 must be 0 to 128"),
        ({"block_size": 4, "num_heads": 5}, "num_heads=5 cannot share 32 channels"),
        ({"block_size": 4, "qk_ratio": 0.0}, "qk_ratio=0.0 leaves none"),
    ],
)
def test_refuses(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        HaloAttention(32, **fields).init(jax.random.key(0), x)
