from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import NormalizationBased
from flaxattn.errors import InputError
from flaxattn.layers.norm import BatchNorm
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import normalization_based

CASES = [
    Case(("nam", "nam.official"), {}, lambda: normalization_based.Att(32), "official"),
    # The spatial half has weights for each position.
    Case(
        ("nam.channel_spatial",),
        {},
        lambda: normalization_based.Att(32, 13 * 7),
        "official",
        on=Inputs(maps=((13, 7),), refused=((56, 56), (1, 1))),
    ),
    Case(
        ("nam.channel_spatial, 56x56",),
        {},
        lambda: normalization_based.Att(32, 56 * 56),
        "official",
        on=Inputs(maps=((56, 56),)),
    ),
    Case(
        ("nam.channel_spatial, 1x1",),
        {},
        lambda: normalization_based.Att(32, 1),
        "official",
        on=Inputs(maps=((1, 1),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_at_first_every_channel_weighs_the_same(x):
    layer = NormalizationBased()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y = layer.apply(variables, x)
    assert parity.difference(y, jax.nn.sigmoid(x / 32 / np.sqrt(1 + 1e-5)) * x) < 1e-6


def test_the_weights_pass_no_gradient_to_the_scales(x):
    """With one channel its weight is 1 whatever the scale; a fixed weight has bn's gradient."""
    layer = NormalizationBased()
    variables = jax.jit(layer.init)(jax.random.key(1), x)

    def loss(scale, weights):
        normal = x / np.sqrt(1 + 1e-5) * scale[None, None, None]
        return jnp.sum(jax.nn.sigmoid(weights[None, None, None] * normal) * x)

    def ours(variables):
        return jnp.sum(layer.apply(variables, x))

    scale = variables["params"]["bn2"]["scale"] = jnp.linspace(0.5, 2, 32)
    found = jax.grad(ours)(variables)["params"]["bn2"]["scale"]
    fixed = jax.grad(loss)(scale, scale / scale.sum())
    assert parity.difference(found, fixed) < 1e-5
    through = jax.grad(lambda s: loss(s, s / s.sum()))(scale)
    assert parity.difference(found, through) > 0.1


def test_negative_scales_weigh_by_their_size(x):
    layer = NormalizationBased()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y = layer.apply(variables, x)
    variables["params"]["bn2"]["scale"] = -variables["params"]["bn2"]["scale"]
    _, sown = contract.sown(layer, variables, x)
    assert parity.difference(sown["attention"][0], 1 - y / x) < 1e-4


def test_zero_scales_halve_the_input(x):
    """As a residual branch's last norm may start; the authors' code answers NaN."""
    layer = NormalizationBased()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["bn2"]["scale"] = jnp.zeros(32)
    np.testing.assert_array_equal(layer.apply(variables, x), 0.5 * x)
    gradients = jax.grad(lambda v: layer.apply(v, x).sum())(variables)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_spatial_half_has_weights_for_each_position(x):
    layer = NormalizationBased.channel_spatial()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    assert variables["params"]["bn"]["scale"].shape == (15,)
    y, sown = contract.sown(layer, variables, x)
    channel, spatial = sown["attention"][0]["channel"], sown["attention"][0]["spatial"]
    assert channel.shape == spatial.shape == x.shape
    assert parity.difference(y, x * channel * spatial) < 1e-6


def test_the_spatial_half_refuses_maps_of_another_size(x):
    layer = NormalizationBased.channel_spatial()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match=r"scale is \(15,\), made for a map of another size"):
        layer.apply(variables, x[:, 1:])


def test_one_value_per_channel_is_refused_in_train_mode(x):
    layer = NormalizationBased()
    vector = x[:1, :1, :1]
    variables = jax.jit(layer.init)(jax.random.key(1), vector)
    with pytest.raises(InputError, match="more than one value per channel"):
        layer.apply(variables, vector, train=True, mutable=["batch_stats"])


def test_bfloat16():
    norm = partial(BatchNorm, scale_init=jax.nn.initializers.normal(0.5))
    contract.check_bfloat16(NormalizationBased(norm=norm))
