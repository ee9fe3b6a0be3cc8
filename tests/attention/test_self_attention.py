"""Self-attention: parity, the chunked path and its memory, the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention.self_attention import SelfAttention
from flaxattn.errors import InputError
from tests.attention import parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import self_attention

CASES = [
    Case(
        (
            "self_attention",
            "self_attention.article_s1",
            "self_attention.danet",
            "danet_position",
        ),
        {},
        lambda: self_attention.SelfAttention(32),
        "articles",
    ),
    *[
        Case(
            ("self_attention, chunked",),
            {"query_chunk": query_chunk},
            lambda: self_attention.SelfAttention(32),
            "articles",
            on=Inputs(maps=((13, 7),)),
        )
        for query_chunk in (1, 40, 10_000)
    ],
]


def case(shape, *, gamma=0.7, dtype=jnp.float32, **fields):
    """A layer whose gamma is not zero, its variables, and an input."""
    layer = SelfAttention(**fields)
    x = jax.random.normal(jax.random.key(1), shape, dtype)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    variables["params"]["gamma"] = jnp.full((1,), gamma)
    return layer, variables, x


def test_zero_gamma_is_identity():
    layer = SelfAttention()
    x = jax.random.normal(jax.random.key(1), (2, 5, 3, 16))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)


def test_constant_map_gives_the_value_of_one_position():
    layer, variables, _ = case((2, 4, 6, 16), gamma=1.0)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(2), (2, 1, 1, 16)), (2, 4, 6, 16))
    value = variables["params"]["value_conv"]
    expected = x + x @ value["kernel"][0, 0] + value["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("query_chunk", [None, 4])
def test_map_is_sown_and_rows_sum_to_one(query_chunk):
    layer, variables, x = case((2, 5, 3, 16), query_chunk=query_chunk)
    answer, sown = layer.apply(variables, x, mutable=["intermediates"])
    (attention,) = sown["intermediates"]["attention"]
    assert attention.shape == (2, 15, 15)
    np.testing.assert_allclose(attention.sum(-1), np.ones((2, 15)), rtol=1e-6)
    assert np.asarray(attention).std() > 1e-3
    np.testing.assert_allclose(answer, layer.apply(variables, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("query_chunk", [7, 256])
def test_chunks_change_neither_values_nor_gradients(query_chunk):
    layer, variables, x = case((2, 19, 23, 16))

    def value_and_gradients(layer):
        def loss(variables, x):
            answer = layer.apply(variables, x)
            return jnp.sum(jnp.sin(answer)), answer

        (_, answer), (by_variables, by_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            variables, x
        )
        # A key's bias shifts all energies of a query alike: its gradient is rounding only.
        del by_variables["params"]["key_conv"]["bias"]
        return answer, by_variables, by_x

    chunked = value_and_gradients(layer.clone(query_chunk=query_chunk))
    full = value_and_gradients(layer)
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(full), strict=True):
        assert parity.difference(ours, theirs) <= 1e-5


def temporary_bytes(height, width, query_chunk):
    """What XLA reserves for the value and all gradients, arguments and answers apart."""
    layer = SelfAttention(query_chunk=query_chunk)
    x = jax.ShapeDtypeStruct((1, height, width, 16), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return step.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_chunked_memory_grows_linearly():
    small, large = (temporary_bytes(side, 48, 100) for side in (32, 128))
    assert large < 5 * small  # four times the positions
    small_full, large_full = (temporary_bytes(side, 48, None) for side in (32, 128))
    assert large_full > 12 * small_full
    assert large < large_full / 20


@pytest.mark.parametrize("query_chunk", [None, 8])
def test_bfloat16_keeps_a_float32_softmax(query_chunk):
    layer, variables, x = case((2, 5, 7, 16), query_chunk=query_chunk)
    x = (x + 30).astype(jnp.bfloat16)  # energies in the hundreds, where bfloat16 steps by one
    answer, sown = layer.apply(variables, x, mutable=["intermediates"])
    (attention,) = sown["intermediates"]["attention"]
    assert answer.dtype == jnp.bfloat16
    assert attention.dtype == jnp.float32
    np.testing.assert_allclose(attention.sum(-1), np.ones((2, 35)), rtol=1e-5)
    exact = layer.apply(variables, x.astype(jnp.float32))
    unseen = layer.apply(variables, x)
    assert parity.difference(unseen.astype(jnp.float32), exact) < 0.02


def test_dtype_sets_the_projections_but_not_the_answer():
    layer, variables, x = case((2, 5, 7, 16), dtype=jnp.float32)
    answer = layer.clone(dtype=jnp.bfloat16).apply(variables, x)
    exact = layer.apply(variables, x)
    assert answer.dtype == jnp.float32
    assert 0 < np.abs(answer - exact).max() < 0.05


def test_train_changes_nothing():
    layer, variables, x = case((2, 5, 3, 16))
    np.testing.assert_array_equal(
        layer.apply(variables, x, train=True), layer.apply(variables, x, train=False)
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reduction": 32}, "reduction=32 leaves no channel of 16"),
        ({"query_chunk": 0}, "query_chunk=0 is below one"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        SelfAttention(**fields).init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))
