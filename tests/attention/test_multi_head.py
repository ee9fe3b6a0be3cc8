"""Multi-head self-attention: parity with timm and torch, the mask, the chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import weights
from flaxattn.attention import MultiHeadAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import multi_head

CASES = [
    Case(
        ("multi_head", "multi_head.timm"),
        {"num_heads": 4},
        lambda: multi_head.TimmAttention(32, num_heads=4, qkv_bias=True),
        "timm",
        on=Inputs(maps=((13, 7), (1, 1))),
    ),
    Case(
        ("multi_head, torch's names, chunked",),
        {"query_chunk": 40},
        lambda: multi_head.TorchAttention(32, 8),
        "torch",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("multi_head, qkv_bias=False",),
        {"qkv_bias": False},
        lambda: multi_head.TimmAttention(32, num_heads=8),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (3, 5, 4, 32))


@pytest.fixture
def mask():
    """Some keys of the first sample, all of the second, none of the third."""
    rng = np.random.default_rng(0)
    return jnp.stack([rng.random(20) < 0.5, np.ones(20, bool), np.zeros(20, bool)])


@pytest.mark.parametrize("query_chunk", [None, 3])
def test_mask_leaves_keys_out_as_torch_does(x, mask, query_chunk):
    reference = multi_head.TorchAttention(32, 4).eval()
    parity.randomise(reference, np.random.default_rng(0))
    layer = MultiHeadAttention(num_heads=4, query_chunk=query_chunk)
    state = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    variables = weights.load(layer, state, x.shape, "torch")
    ours = layer.apply(variables, x, mask=mask)
    with torch.no_grad():
        maps = torch.tensor(parity.to_channels_first(np.asarray(x[:2])))
        theirs = reference(maps, torch.tensor(~np.asarray(mask[:2])))
    assert parity.difference(ours[:2], parity.to_channels_last(theirs.numpy())) <= 1e-5
    unmasked = layer.apply(variables, x)
    assert parity.difference(ours[0], unmasked[0]) > 0.1
    np.testing.assert_allclose(ours[1], unmasked[1], rtol=1e-5, atol=1e-6)


def test_what_is_masked_has_no_weight_and_no_gradient(x, mask):
    layer = MultiHeadAttention()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    _, sown = layer.apply(variables, x, mask=mask, mutable=["intermediates"])
    (attention,) = sown["intermediates"]["attention"]
    assert attention.shape == (3, 8, 20, 20)
    assert (attention[0][..., ~np.asarray(mask[0])] == 0).all()
    np.testing.assert_allclose(attention[2], np.full((8, 20, 20), 1 / 20), rtol=1e-6)

    def first(x):  # the answer at a position that is kept
        position = int(np.flatnonzero(mask[0])[0])
        return layer.apply(variables, x, mask=mask).reshape(3, 20, 32)[0, position].sum()

    gradient = jax.grad(first)(x).reshape(3, 20, 32)
    assert (gradient[0][~np.asarray(mask[0])] == 0).all()
    assert (gradient[0][np.asarray(mask[0])] != 0).any()


def test_equal_positions_answer_their_own_value():
    layer = MultiHeadAttention(num_heads=4)
    x = jnp.tile(jax.random.normal(jax.random.key(0), (2, 1, 1, 32)), (1, 3, 6, 1))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    qkv, proj = variables["params"]["qkv"], variables["params"]["proj"]
    expected = x @ qkv["kernel"][:, 64:] @ proj["kernel"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_heads_attend_apart(x):
    """What one head reads changes its own map only."""
    layer = MultiHeadAttention(num_heads=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    _, before = contract.sown(layer, variables, x)
    kernel = variables["params"]["qkv"]["kernel"]
    variables["params"]["qkv"]["kernel"] = kernel.at[:, 8:16].multiply(2)
    _, after = contract.sown(layer, variables, x)
    changed = jnp.abs(after["attention"][0] - before["attention"][0]).max((0, 2, 3)) > 1e-3
    assert changed.tolist() == [False, True, False, False]


def test_a_wider_dtype_is_kept_up_to_the_answer(x):
    layer = MultiHeadAttention(dtype=jnp.float32)
    narrow = x.astype(jnp.bfloat16)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    expected = layer.apply(variables, narrow.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(layer.apply(variables, narrow), expected)


def test_bfloat16():
    contract.check_bfloat16(MultiHeadAttention(), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_heads": 5}, "num_heads=5 cannot share 32 channels evenly: use a divisor of 32"),
        ({"num_heads": 0}, "num_heads=0 cannot share"),
        ({"query_chunk": 0}, "query_chunk=0 is below one"),
    ],
)
def test_refuses(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        MultiHeadAttention(**fields).init(jax.random.key(0), x)


@pytest.mark.parametrize("mask", [np.ones((3, 5, 4), bool), np.ones((3, 20), np.float32)])
def test_refuses_what_is_no_mask(x, mask):
    layer = MultiHeadAttention()
    with pytest.raises(InputError, match=r"pass booleans of shape \(3, 20\)"):
        layer.init(jax.random.key(0), x, mask=mask)
