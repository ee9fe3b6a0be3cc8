"""Lambda layer: parity with timm, local and global positions, content."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import LambdaLayer
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import lambda_layer

CASES = [
    Case(
        ("lambda",),
        {"features": 32},
        lambda: lambda_layer.LambdaLayer(32, r=23),
        "timm",
        on=Inputs(maps=((13, 7), (1, 1))),
    ),
    Case(
        ("lambda.timm",),
        {"features": 32, "strides": 2, "num_heads": 8, "qkv_bias": True},
        lambda: lambda_layer.LambdaLayer(32, stride=2, num_heads=8, qkv_bias=True),
        "timm",
        on=Inputs(maps=((28, 14),), refused=((13, 7), (1, 1))),
        # strides that do not divide the map
    ),
    Case(
        ("lambda, the whole map",),
        {"features": 32, "kernel_size": None, "key_features": 5},
        lambda: lambda_layer.LambdaLayer(32, feat_size=(13, 7), r=None, dim_head=5),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 6, 5, 32))


def test_whole_map_is_a_kernel_that_covers_it(x):
    local = LambdaLayer(32, kernel_size=11)
    variables = jax.jit(local.init)(jax.random.key(1), x)
    params = dict(variables["params"])
    table = params.pop("conv_lambda")["kernel"]
    params["pos_emb"] = table[:, 1:-1, 0, 0]  # 11 rows and 9 columns reach all of 6x5
    y = LambdaLayer(32, kernel_size=None).apply({**variables, "params": params}, x)
    np.testing.assert_allclose(y, local.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_without_positions_each_answer_is_one_matrix_times_its_query(x):
    layer = LambdaLayer(32)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["conv_lambda"]["kernel"] *= 0
    y, sown = contract.sown(layer, variables, x)
    key = sown["attention"][0]
    qkv = x @ variables["params"]["qkv"]["kernel"][0, 0]
    query, value = qkv[..., :64].reshape(2, 6, 5, 4, 16), qkv[..., 80:]
    norm = 1 / np.sqrt(1 + 1e-5)  # of both, with the initial statistics
    matrix = jnp.einsum("nhwk,nhwv->nkv", key, value) * norm
    expected = jnp.einsum("nhwik,nkv->nhwiv", query * norm, matrix).reshape(x.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(key.sum((1, 2)), np.ones((2, 16)), rtol=1e-5)


def test_features_may_differ_where_timm_cannot(x):
    y, _ = LambdaLayer(24, kernel_size=3).init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 6, 5, 24)


def test_whole_map_belongs_to_one_size(x):
    layer = LambdaLayer(32, kernel_size=None)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match=r"pos_emb is \(11, 9, 16\), made for a map of another"):
        layer.apply(variables, jnp.zeros((1, 6, 6, 32)))


def test_bfloat16():
    contract.check_bfloat16(LambdaLayer(32, kernel_size=3), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_heads": 5}, "num_heads=5 cannot share 32 channels"),
        ({"kernel_size": 4}, "kernel_size=4 cannot keep the size"),
        ({"kernel_size": 0}, "kernel_size=0 cannot"),
        ({"features": 0}, "^features=0 is below one"),
        ({"key_features": 0}, "key_features=0 is below one"),
        ({"strides": 2}, "strides=2 must divide both .* here that is 6x5"),
    ],
)
def test_refuses(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        LambdaLayer(**{"features": 32, **fields}).init(jax.random.key(0), x)
