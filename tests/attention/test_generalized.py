"""Generalized attention: each of its terms, strides, and what a term cannot see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention.generalized import GeneralizedAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import FEATURES, Case, Inputs
from tests.torch_reference import generalized


def case(row, theirs, maps=((13, 7),), **fields):
    reference = partial(generalized.GeneralizedAttention, FEATURES, **theirs)
    return Case((row,), fields, reference, "mmcv", on=Inputs(maps=maps))


CASES = [
    case("generalized", {"heads": 8}, maps=((13, 7), (1, 1))),
    case("generalized.mmcv", {}),
    *[
        case(
            f"generalized, {kind}",
            {"kind": kind, "heads": 4, "kv_stride": 1},
            maps=((5, 7),),
            attention_type=kind,
            num_heads=4,
            kv_stride=1,
        )
        for kind in ("1000", "0100", "0010", "0001", "0011")
    ],
    case(
        "generalized, strided, chunked",
        {"heads": 8, "size": 20, "magnitude": 2, "q_stride": 2, "kv_stride": 3},
        num_heads=8,
        position_embedding_dim=20,
        position_magnitude=2,
        q_stride=2,
        kv_stride=3,
        query_chunk=5,
    ),
    case(
        "generalized, 0010, strided",
        {"kind": "0010", "heads": 8, "q_stride": 2},
        attention_type="0010",
        q_stride=2,
    ),
]


def example(shape=(2, 6, 5, 16), **fields):
    layer = GeneralizedAttention(**{"num_heads": 4, "kv_stride": 1, **fields})
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["gamma"] = jnp.ones((1,))
    return layer, variables, x


def test_starts_as_the_identity_and_lets_gradients_in():
    layer, variables, x = example()
    variables["params"]["gamma"] = jnp.zeros((1,))
    np.testing.assert_array_equal(layer.apply(variables, x), x)
    gradient = jax.grad(lambda v: jnp.sum(jnp.sin(layer.apply(v, x))))(variables)
    assert abs(gradient["params"]["gamma"]) > 1e-3


def test_position_alone_gives_weights_by_distance():
    layer, variables, x = example(attention_type="0001")
    _, sown = contract.sown(layer, variables, x)
    weights = sown["attention"][0].reshape(2, 4, 6, 5, 6, 5)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-6)  # whatever x is
    # Ratios between two keys are those between the same offsets elsewhere.
    here = weights[0, :, 1, 1, 2, 3] / weights[0, :, 1, 1, 1, 1]
    there = weights[0, :, 3, 2, 4, 4] / weights[0, :, 3, 2, 3, 2]
    np.testing.assert_allclose(here, there, rtol=1e-4)
    assert abs(here - 1).max() > 0.01


def test_saliency_alone_gives_all_positions_the_same():
    layer, variables, x = example(attention_type="0010")
    answer, sown = contract.sown(layer, variables, x)
    assert sown["attention"][0].shape == (2, 4, 1, 30)
    added = answer - x
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1, :1], x.shape), atol=1e-5)


def test_chunks_change_neither_values_nor_gradients():
    layer, variables, x = example()

    def answer_and_gradients(layer):
        answer, pullback = jax.vjp(layer.apply, variables, x)
        return answer, pullback(jnp.cos(answer))

    full = answer_and_gradients(layer)
    chunked = answer_and_gradients(layer.clone(query_chunk=7))
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(full), strict=True):
        assert parity.difference(ours, theirs) <= 1e-5


def test_bfloat16_keeps_its_weights_in_float32():
    contract.check_bfloat16(GeneralizedAttention(), same_gate=False)


def test_bfloat16_does_not_round_the_energies_of_position():
    layer, variables, x = example(attention_type="0001")
    variables["params"]["geom_bias"] *= 16
    _, sown = layer.apply(
        variables, x.astype(jnp.bfloat16), capture_intermediates=True, mutable=["intermediates"]
    )
    sown = sown["intermediates"]
    relative = sown["appr_geom_fc_x"]["__call__"][0].astype(jnp.float32).reshape(5, 5, 4, 4)
    bias = variables["params"]["geom_bias"].astype(jnp.bfloat16).astype(jnp.float32)
    energy = jnp.einsum("xkhd,hd->hxk", relative, bias.reshape(4, 4)) / 2**0.5
    log_weights = jnp.log(sown["attention"][0]).reshape(2, 4, 6, 5, 6, 5)[0, :, 0, :, 0]
    expected = energy - energy[..., :1]
    assert abs(expected).max() > 4
    np.testing.assert_allclose(log_weights - log_weights[..., :1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_type": "0000"}, "attention_type='0000' does not say"),
        ({"attention_type": "11"}, "attention_type='11' does not say"),
        ({"attention_type": "1112"}, "pass four digits 0 or 1"),
        ({"num_heads": 17}, "num_heads=17 leaves no channel of 16"),
        ({"num_heads": 0}, "num_heads=0 is below one"),
        ({"kv_stride": 0}, "kv_stride=0 is below one"),
        ({"position_embedding_dim": 6}, "6 must be a multiple of 4.*such as 4"),
        ({"query_chunk": 0}, "query_chunk=0 is below one"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        example(**fields)
