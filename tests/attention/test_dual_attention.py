"""Dual attention and its lite form: parity, gates, dropout of channels, initialisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention.dual_attention import DualAttention
from flaxattn.errors import InputError
from flaxattn.layers.conv import kaiming_fan_out
from tests.attention.parity import Case, Inputs
from tests.torch_reference import dual_attention

CASES = [
    Case(("sca", "sca.article_s3"), {}, lambda: dual_attention.DualAttention(32), "articles"),
    Case(
        ("sca.article_s3_dropout",),
        {},
        lambda: dual_attention.DualAttention(32, drop_rate=0.1),
        "articles",
        modes=(False,),  # two random generators never agree
    ),
    Case(("sca_lite", "sca.lite"), {}, lambda: dual_attention.LiteDualAttention(32), "articles"),
    Case(
        ("sca_channel", "sca.channel_only"),
        {},
        lambda: dual_attention.ChannelOnly(32),
        "articles",
        on=Inputs(maps=((13, 7),)),
    ),
    *[
        Case(
            (f"sca.{task}",),
            {},
            lambda alpha=alpha, beta=beta: dual_attention.DualAttention(32, alpha=alpha, beta=beta),
            "articles",
            on=Inputs(maps=((13, 7),)),
        )
        for task, beta, alpha in (
            ("classification", 0.7, 0.3),
            ("detection", 0.5, 0.7),
            ("segmentation", 0.3, 0.8),
        )
    ],
]


VARIANTS = {"article_s3": DualAttention.article_s3, "lite": DualAttention.lite}


def case(layer, shape=(2, 6, 5, 16)):
    x = jax.random.normal(jax.random.key(1), shape)
    return jax.jit(layer.init)(jax.random.key(0), x), x


def gates_of(layer, variables, x):
    _, sown = layer.apply(variables, x, mutable=["intermediates"])
    (gates,) = sown["intermediates"]["attention"]
    return gates


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_weights_give_a_quarter(variant):
    layer = VARIANTS[variant]()
    variables, x = case(layer)
    variables = jax.tree.map(jnp.zeros_like, variables)
    np.testing.assert_allclose(layer.apply(variables, x), 0.25 * x, rtol=1e-6)


def test_variants_differ_on_the_same_weights():
    dual, lite = DualAttention(reduction=16), DualAttention.lite()
    variables, x = case(dual)
    assert np.abs(dual.apply(variables, x) - lite.apply(variables, x)).max() > 0.01
    only_gate = DualAttention(reduction=16, activation=jax.nn.hard_swish)
    assert np.abs(only_gate.apply(variables, x) - lite.apply(variables, x)).max() > 1e-3


def test_strengths_lead_from_the_identity_to_the_gates():
    whole = DualAttention()
    variables, x = case(whole)
    np.testing.assert_array_equal(DualAttention(alpha=0, beta=0).apply(variables, x), x)
    gates = gates_of(whole, variables, x)
    channel = DualAttention(alpha=0).apply(variables, x)
    np.testing.assert_allclose(channel, x * gates["channel"][:, None, None, :], rtol=1e-6)
    spatial = DualAttention(beta=0, alpha=0.5).apply(variables, x)
    np.testing.assert_allclose(spatial, x * (1 + gates["spatial"]) / 2, rtol=1e-6)


def test_channel_only_has_no_spatial_path():
    layer = DualAttention.channel_only()
    variables, x = case(layer)
    assert variables["params"].keys() == {"channel_att_1", "channel_att_3"}
    with_path, _ = case(DualAttention())
    del with_path["params"]["spatial_att_0"]
    y = DualAttention(alpha=0).apply(case(DualAttention())[0], x)
    np.testing.assert_array_equal(layer.apply(with_path, x), y)


def test_gates_are_sown_and_their_product_is_the_answer():
    layer = DualAttention()
    variables, x = case(layer)
    gates = gates_of(layer, variables, x)
    assert {name: gate.shape for name, gate in gates.items()} == {
        "channel": (2, 16),
        "spatial": (2, 6, 5, 1),
    }
    expected = x * gates["channel"][:, None, None, :] * gates["spatial"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_keeps_float32_gates(variant):
    layer = VARIANTS[variant]()
    variables, x = case(layer)
    x = (x + 100).astype(jnp.bfloat16)  # where bfloat16 steps by 0.5, and a sum of 30 by 16
    gates, exact = gates_of(layer, variables, x), gates_of(layer, variables, x.astype(jnp.float32))
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    assert {gate.dtype for gate in gates.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(gates["channel"], exact["channel"], rtol=1e-5, atol=1e-7)


def dropped_channels(answer, kept):
    """Which (sample, channel) are zero, having checked that each is so as a whole."""
    zero = np.asarray(answer == 0)
    assert not np.any(np.asarray(kept == 0))
    np.testing.assert_array_equal(zero.all((1, 2)), zero.any((1, 2)))
    return zero.all((1, 2))


def test_dropout_drops_whole_channels_of_each_sample():
    layer = DualAttention.article_s3_dropout(drop_rate=0.25)
    variables, x = case(layer, (64, 3, 2, 32))
    kept = layer.apply(variables, x)
    answer = layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)})
    dropped = dropped_channels(answer, kept)
    assert abs(dropped.mean() - 0.25) < 0.04  # four deviations of 2048 draws
    assert (dropped != dropped[:1]).any()  # each sample has its own
    scaled = np.where(dropped[:, None, None, :], 0, kept / 0.75)
    np.testing.assert_allclose(answer, scaled, rtol=1e-5)


def test_dropout_is_drawn_anew_and_keeps_the_mean():
    layer = DualAttention.article_s3_dropout()
    variables, x = case(layer, (4, 3, 2, 16))
    keys = jax.random.split(jax.random.key(3), 400)
    answers = jax.vmap(lambda k: layer.apply(variables, x, train=True, rngs={"dropout": k}))(keys)
    kept = layer.apply(variables, x)
    ratio = np.asarray(answers / kept[None])
    assert abs(ratio.mean() - 1) < 0.01
    assert abs((ratio == 0).mean() - 0.1) < 0.01
    assert np.unique(np.round(ratio, 3)).tolist() == pytest.approx([0, 1.111])


def test_dropout_leaves_evaluation_alone():
    plain, dropping = DualAttention(), DualAttention.article_s3_dropout()
    variables, x = case(plain)
    np.testing.assert_array_equal(plain.apply(variables, x), dropping.apply(variables, x))
    np.testing.assert_array_equal(
        plain.apply(variables, x, train=True), plain.apply(variables, x, train=False)
    )


def test_only_the_articles_initialiser_saturates_the_spatial_gate():
    """The article's scheme on 512 ReLU channels: 81 to 93 % of the gates in five draws."""
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (8, 14, 14, 512)))

    def saturated(layer):
        gate = gates_of(layer, jax.jit(layer.init)(jax.random.key(0), x), x)["spatial"]
        return np.mean((np.asarray(gate) < 0.01) | (np.asarray(gate) > 0.99))

    assert saturated(DualAttention()) == 0
    assert saturated(DualAttention(kernel_init=kaiming_fan_out)) == 0
    article = DualAttention(kernel_init=kaiming_fan_out, spatial_kernel_init=kaiming_fan_out)
    assert saturated(article) > 0.75


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (DualAttention(), "reduction=8 leaves no channel of 4"),
        (DualAttention.lite(), "reduction=16 leaves no channel of 4"),
        (DualAttention(reduction=2, drop_rate=1.5), "drop_rate=1.5 must be a probability"),
        (DualAttention(alpha=1.5), "alpha=1.5 must be a strength: use 0 to 1"),
        (DualAttention(beta=-0.1), "beta=-0.1 must be a strength"),
    ],
)
def test_refuses(layer, sentence):
    with pytest.raises(InputError, match=sentence):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
