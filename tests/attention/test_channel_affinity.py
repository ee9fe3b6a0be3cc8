import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import ChannelAffinity
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import channel_affinity

CASES = [
    Case(
        ("danet_channel.official",),
        {},
        channel_affinity.ChannelAffinity,
        "official",
    ),
    Case(
        ("danet_channel", "danet_channel.paper"),
        {},
        lambda: channel_affinity.ChannelAffinity(similar=True),
        "official",
        on=Inputs(
            maps=((1, 2),)
        ),  # on larger ones each channel attends to itself alone, but for rounding
    ),
]


def attend(layer, x, gamma=1.0):
    """The answer and the map."""
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    variables["params"]["gamma"] = jnp.full((1,), gamma)
    answer, sown = contract.sown(layer, variables, x)
    return answer, sown["attention"][0]


def test_zero_gamma_is_identity():
    x = jax.random.normal(jax.random.key(1), (2, 5, 3, 16))
    answer, _ = attend(ChannelAffinity(), x, gamma=0.0)
    np.testing.assert_array_equal(answer, x)


def test_the_authors_code_attends_to_the_channel_least_like_it():
    pattern = jnp.array([1.0, -1.0, 1.0, 1.0]).reshape(1, 2, 2, 1) * 5
    x = jnp.concatenate([pattern, pattern, -pattern], axis=-1)
    answer, weights = attend(ChannelAffinity.official(), x)
    np.testing.assert_allclose(weights[0], [[0, 0, 1], [0, 0, 1], [0.5, 0.5, 0]], atol=1e-6)
    np.testing.assert_allclose(answer, jnp.zeros_like(x), atol=1e-6)
    _, weights = attend(ChannelAffinity.paper(), x)
    np.testing.assert_allclose(weights[0], [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-6)


def test_constant_maps_of_equal_channels_double():
    x = jnp.full((2, 4, 4, 8), 3.0)
    for layer in (ChannelAffinity.official(), ChannelAffinity.paper()):
        answer, weights = attend(layer, x)
        np.testing.assert_allclose(weights, jnp.full((2, 8, 8), 1 / 8), rtol=1e-6)
        np.testing.assert_allclose(answer, 2 * x, rtol=1e-6)


@pytest.mark.parametrize("layer", [ChannelAffinity.official(), ChannelAffinity.paper()])
def test_bfloat16_keeps_a_float32_softmax(layer):
    x = jax.random.normal(jax.random.key(1), (2, 5, 3, 16), jnp.bfloat16)
    answer, weights = attend(layer, x)
    assert answer.dtype == jnp.bfloat16
    assert weights.dtype == jnp.float32
    _, exact = attend(layer, x.astype(jnp.float32))
    np.testing.assert_allclose(weights, exact, rtol=1e-4, atol=1e-6)
