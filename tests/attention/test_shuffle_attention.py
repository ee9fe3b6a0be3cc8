"""Shuffle attention: parity, the shuffle, how its weights are shared, numbers of groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import ShuffleAttention
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import shuffle_attention

CASES = [
    Case(
        ("shuffle", "shuffle.official"),
        {"groups": 4},
        lambda: shuffle_attention.ShuffleAttention(32, 4),
        "official",
        on=Inputs(maps=((56, 56), (13, 7)), refused=((1, 1),)),
    ),
    # The norm of a single value is zero, and so is its scale's gradient.
    Case(
        ("shuffle.official, one position",),
        {"groups": 4},
        lambda: shuffle_attention.ShuffleAttention(32, 4),
        "official",
        on=Inputs(maps=((1, 1),)),
        cancelled=("gn.weight",),
    ),
    Case(
        ("shuffle, 1 channel a share",),
        {"groups": 16},
        lambda: shuffle_attention.ShuffleAttention(32, 16),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def drawn(layer, x=X):
    """Variables that are not the initial ones."""
    leaves, tree = jax.tree.flatten(jax.jit(layer.init)(jax.random.key(1), x))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(
        tree, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


def test_it_starts_as_a_shuffle():
    """Of 8 channels to 0, 4, 1, 5, 2, 6, 3, 7 (mechanisms, 0.1), times sigmoid(1)."""
    layer = ShuffleAttention(groups=2)
    x = X[..., :8]
    y = layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x)
    np.testing.assert_allclose(
        y, x[..., np.array([0, 4, 1, 5, 2, 6, 3, 7])] * jax.nn.sigmoid(1.0), rtol=1e-6
    )


def test_groups_share_their_weights():
    """Groups of equal channels have equal gates, and nothing of the parameters grows with C."""
    layer = ShuffleAttention(groups=4)
    x = jnp.tile(X[..., :8], (1, 1, 1, 4))
    variables = drawn(layer)
    assert {leaf.shape for leaf in jax.tree.leaves(variables)} == {(4,)}
    _, sown = contract.sown(layer, variables, x)
    channel, spatial = sown["attention"][0]["channel"], sown["attention"][0]["spatial"]
    for gates in (channel, spatial):
        np.testing.assert_allclose(gates, jnp.roll(gates, 4, axis=-1), rtol=1e-5)
    assert np.asarray(spatial).std((1, 2)).min() > 1e-3


def test_a_group_sees_no_other():
    layer = ShuffleAttention(groups=4)
    variables = drawn(layer)
    before, after = (
        contract.sown(layer, variables, x)[1]["attention"][0]
        for x in (X, X.at[..., :8].multiply(3))
    )
    for name in ("channel", "spatial"):
        changed = np.asarray(abs(before[name] - after[name])).reshape(-1, 16).max(0) > 1e-6
        assert changed[:4].any()
        assert not changed[4:].any()


@pytest.mark.parametrize(
    ("channels", "groups", "sentence"),
    [
        (64, 64, r"groups=64 does not cut 64 channels .* a divisor of 32, such as 32\."),
        (192, 64, r"groups=64 does not cut 192 channels .* a divisor of 96, such as 48\."),
        (320, 64, r"groups=64 does not cut 320 channels .* such as 40\."),
        (32, 0, r"groups=0 .* such as 1\."),
        (32, -4, r"groups=-4 .* such as 1\."),
        (31, 1, r"groups=1 cannot halve groups of 31 channels"),
    ],
)
def test_refuses(channels, groups, sentence):
    with pytest.raises(InputError, match=sentence):
        ShuffleAttention(groups=groups).init(jax.random.key(0), jnp.zeros((1, 4, 4, channels)))


def test_the_number_it_offers_works():
    layer = ShuffleAttention(groups=48)
    layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 192)))


def test_a_single_position_is_normalised_to_zero():
    """torch's float32 leaves x / sqrt(epsilon) times its rounding there, 1e-4 in the gradients."""
    layer = ShuffleAttention(groups=4)
    x = X[:, :1, :1]
    variables = drawn(layer, x)
    params = variables["params"]
    _, sown = contract.sown(layer, variables, x)
    gate = jax.nn.sigmoid(params["sweight"] * params["gn"]["bias"] + params["sbias"])
    expected = jnp.broadcast_to(jnp.tile(gate, 4), (2, 1, 1, 16))
    np.testing.assert_allclose(sown["attention"][0]["spatial"], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 4, 4, 32)])
def test_gradients_of_constant_maps_are_finite(shape):
    layer = ShuffleAttention(groups=4)
    x = jnp.full(shape, 3.0)
    gradient = jax.grad(lambda x: layer.apply(drawn(layer), x).sum())(x)
    assert jnp.isfinite(gradient).all()


def test_bfloat16():
    """With weights that bring means of 100 back to logits around 0."""
    layer = ShuffleAttention(
        groups=4,
        kernel_init=nn.initializers.constant(0.3),
        bias_init=nn.initializers.constant(-30.0),
    )
    contract.check_bfloat16(layer)
