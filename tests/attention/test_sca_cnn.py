import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import SCACNN
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import sca_cnn

# The last bias of either softmax has no gradient and the first one's is small: sums that cancel,
# of which float32 leaves a rounding that grows with the C * HW before them, in torch as here. On
# 32 channels it comes near the bound (1.2e-4 on 14x14 maps); so few channels stay clear of it.
FEW = 8
CASES = [
    Case(
        ("sca_cnn", "sca_cnn.official"),
        {"hidden_features": 16},
        lambda: sca_cnn.SCACNN(FEW, 16),
        "official",
        on=Inputs(maps=((7, 7), (13, 7), (1, 1)), features=FEW),
        exact=True,
    ),
    Case(
        ("sca_cnn.official_res5c",),
        {"hidden_features": 16},
        lambda: sca_cnn.SCACNN(FEW, 16, layer="res5c", misplaced=True),
        "official_res5c",
        on=Inputs(maps=((13, 7),), features=FEW),
    ),
    Case(
        ("sca_cnn.spatial_channel",),
        {"hidden_features": 16},
        lambda: sca_cnn.SCACNN(FEW, 16, spatial_first=True),
        "official",
        on=Inputs(maps=((13, 7),), features=FEW),
    ),
]


class Told(SCACNN):
    """SCACNN with the map's first position for a decoder's state, as the reference has it."""

    def __call__(self, x, train=False):
        return super().__call__(x, train, state=x[:, 0, 0, : self.state_features])


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


@pytest.mark.parametrize("dtype", parity.BOUNDS)
@pytest.mark.parametrize("variant", ["official", "official_res5c"])
def test_a_decoder_s_state_enters_both_scores(variant, dtype):
    layer = getattr(Told, variant)(hidden_features=16, state_features=6)
    last = {"layer": "res5c", "misplaced": True} if variant == "official_res5c" else {}
    reference = sca_cnn.SCACNN(FEW, 16, state_features=6, **last)
    parity.randomise(reference, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(3, 5, 4, FEW))
    contract.check_round_trip(layer, reference, variant, x.shape)
    with jax.enable_x64(dtype == "float64"):
        layer = layer.clone(param_dtype=jnp.dtype(dtype))
        for train in (False, True):
            found = parity.errors(layer, reference, x, train, dtype, variant, {})
            for quantity, error in found.items():
                assert error <= parity.BOUNDS[dtype][quantity], quantity


def test_without_a_state_it_is_zero(x):
    layer = SCACNN(8, state_features=6)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y = layer.apply(variables, x)
    np.testing.assert_array_equal(layer.apply(variables, x, state=jnp.zeros((2, 6))), y)
    assert abs(layer.apply(variables, x, state=100 * jnp.ones((2, 6))) - y).max() > 1e-3
    without = {path: dict(p) for path, p in variables["params"].items()}
    for path in without.values():
        del path["state"]
    np.testing.assert_array_equal(SCACNN(8).apply({"params": without}, x), y)


@pytest.mark.parametrize("order", ["channel_spatial", "spatial_channel"])
def test_even_weights_leave_x_as_it_is(order, x):
    layer = SCACNN(8, order=order, kernel_init=nn.initializers.zeros)
    y = layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x)
    np.testing.assert_allclose(y, x, rtol=1e-6)


def test_the_answer_is_x_times_both_weights(x):
    layer = SCACNN(8, kernel_init=nn.initializers.normal(1))
    y, maps = contract.sown(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    (attention,) = maps["attention"]
    expected = x * 32 * attention["channel"][:, None, None, :] * 15 * attention["spatial"]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert attention["channel"].std() > 1e-3
    assert attention["spatial"].std() > 1e-3


def test_only_the_misplaced_parenthesis_gives_the_last_bias_an_effect(x):
    right, wrong = SCACNN(8), SCACNN.official_res5c(hidden_features=8)
    variables = jax.jit(right.init)(jax.random.key(1), x)
    y = right.apply(variables, x)
    np.testing.assert_array_equal(wrong.apply(variables, x), y)
    variables["params"]["spatial"]["bias"] += 1
    np.testing.assert_allclose(right.apply(variables, x), y, rtol=1e-5)
    assert abs(wrong.apply(variables, x) - y).max() > 1e-3


def test_all_but_the_product_over_the_map_is_in_full_float32(x):
    layer = SCACNN(8, state_features=6)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    traced = jax.jit(layer.apply).trace(variables, x)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "convolution(" in line or "dot_gen" in line]
    assert len(products) == 3  # that one, and of the decoder's state, which there is twice
    narrow = [line for line in products if "HIGHEST" not in line]
    assert len(narrow) == 1
    assert "1x32x8xf32" in narrow[0]


def test_parameter_count_and_start():
    """Of a layer: k + dk + 2k + 1 + Ck + dk + 2k + 1 (mechanisms, A10)."""
    features, d, k = 48, 20, 16
    layer = SCACNN(k, state_features=d)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 2, 2, features)))["params"]
    count = sum(p.size for p in jax.tree.leaves(params))
    assert count == (k + d * k + 2 * k + 1) + (features * k + d * k + 2 * k + 1)
    assert jnp.std(params["spatial"]["context"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    square = SCACNN(48).init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))["params"]
    kernel = square["spatial"]["context"]["kernel"][0]
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(48), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "state", "sentence"),
    [
        (SCACNN(order="both"), None, "unknown order 'both'"),
        (SCACNN(hidden_features=0), None, "hidden_features=0 is below one"),
        (SCACNN(state_features=0), None, "state_features=0 is below one"),
        (SCACNN(8), (2, 6), r"shape \(2, 6\) does not fit 2 samples and state_features=None"),
        (SCACNN(8, state_features=6), (2, 5), r"shape \(2, 5\) does not fit .*features=6"),
        (SCACNN(8, state_features=6), (6,), r"shape \(6,\) does not fit 2 samples"),
    ],
)
def test_what_it_cannot_do(layer, state, sentence, x):
    state = state and jnp.zeros(state)
    with pytest.raises(InputError, match=sentence):
        layer.init(jax.random.key(0), x, state=state)


def test_bfloat16():
    def change(variables):
        channel = variables["params"]["channel"]
        channel = {**channel, "context": contract.centred(channel["context"])}
        return {"params": {**variables["params"], "channel": channel}}

    layer = SCACNN(8, kernel_init=nn.initializers.normal(1.0))
    contract.check_bfloat16(layer, same_gate="channel", change=change)
