import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn.attention import SqueezeExcite
from flaxattn.errors import InputError
from flaxattn.layers.widths import reduced_features
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import squeeze_excite
from tests.torch_reference.dual_attention import Hardsigmoid
from tests.torch_reference.torchvision_shim import timm, torchvision

CASES = [
    Case(
        ("se.article_s0",),
        {"reduction": 4},
        lambda: squeeze_excite.SEBlock(32, 4, bias=False),
        "articles",
    ),
    Case(
        ("se", "se.article_s1"),
        {"reduction": 4},
        lambda: squeeze_excite.SEBlock(32, 4),
        "articles",
    ),
    Case(("se.article_s2",), {}, lambda: squeeze_excite.SEBlock(32, bias=False), "articles"),
    Case(("se.timm",), {}, lambda: timm.layers.SEModule(32), "timm"),
    Case(
        ("efficientnet_se", "se.efficientnet"),
        {"hidden_features": 6},
        lambda: torchvision.ops.SqueezeExcitation(32, 6, activation=torch.nn.SiLU),
        "torchvision",
    ),
    Case(
        ("se.efficientnet, timm's names",),
        {"reduction": 4},
        lambda: timm.models._efficientnet_blocks.SqueezeExcite(32, act_layer=torch.nn.SiLU),
        "timm_efficientnet",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("mobilenet_v3_se", "se.mobilenet_v3"),
        {},
        lambda: torchvision.ops.SqueezeExcitation(32, 8, scale_activation=Hardsigmoid),
        "torchvision",
    ),
    Case(
        ("grouped_se", "se.grouped"),
        {"reduction": 4},
        lambda: squeeze_excite.GroupedSE(32, 8, 4),
        None,
    ),
]


@pytest.mark.parametrize(("features", "reduction"), [(8, 16), (32, 16), (40, 4), (36, 3), (100, 7)])
def test_hidden_width_of_timm(features, reduction):
    layer = SqueezeExcite.timm(reduction=reduction)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, features)))["params"]
    theirs = timm.layers.SEModule(features, rd_ratio=1 / reduction)
    assert params["fc1"]["kernel"].shape[-1] == theirs.fc1.out_channels


def test_a_round_limit_takes_the_next_multiple():
    """27 is nearest to 24, which is more than a tenth less."""
    assert reduced_features(108, 4, divisor=8) == 24
    for features in range(4, 512, 4):
        width = reduced_features(features, 4, divisor=8, round_limit=0.9)
        assert width == torchvision.models._utils._make_divisible(features // 4, 8)
        assert width == timm.layers.make_divisible(features / 4, 8)


def squeezes(name):
    """(channels, hidden width) of each squeeze-and-excitation in a network of torchvision's."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    layers = [m for m in network.modules() if isinstance(m, torchvision.ops.SqueezeExcitation)]
    assert layers
    return [(layer.fc1.in_channels, layer.fc1.out_channels) for layer in layers]


def hidden_width(layer, features):
    x = jax.ShapeDtypeStruct((1, 1, 1, features), jnp.float32)
    return jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["fc1"]["kernel"].shape[-1]


def test_hidden_widths_of_the_mobile_networks():
    first, *expanded = squeezes("efficientnet_b0")  # the first stage does not expand
    assert hidden_width(SqueezeExcite.efficientnet(reduction=4), first[0]) == first[1]
    for features, hidden in expanded:
        assert hidden_width(SqueezeExcite.efficientnet(), features) == hidden
    for features, hidden in squeezes("mobilenet_v3_large") + squeezes("mobilenet_v3_small"):
        assert hidden_width(SqueezeExcite.mobilenet_v3(), features) == hidden


@pytest.mark.parametrize("layer", [SqueezeExcite.efficientnet(), SqueezeExcite.mobilenet_v3()])
def test_mobile_layers_start_as_tensorflow_s(layer):
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, 960)))["params"]
    for fc in params.values():
        fan_out = fc["kernel"].shape[-1]
        assert jnp.std(fc["kernel"]) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert not fc["bias"].any()


def test_groups_read_and_gate_their_own_channels():
    layer = SqueezeExcite.grouped(groups=4, reduction=2)
    pooled = jax.random.normal(jax.random.key(0), (1, 32))
    variables = layer.init(jax.random.key(1), pooled, method="gate")
    gates = layer.apply(variables, jnp.concatenate([pooled, pooled.at[0, 9].add(3)]), method="gate")
    np.testing.assert_array_equal(gates[0] != gates[1], np.arange(32) // 8 == 9 // 8)
    dense = SqueezeExcite(reduction=2).init(jax.random.key(1), pooled, method="gate")
    for fc in ("fc1", "fc2"):
        ours, theirs = variables["params"][fc]["kernel"], dense["params"][fc]["kernel"]
        assert 4 * ours.size == theirs.size


def test_silent_last_layer_halves_the_input():
    layer = SqueezeExcite(reduction=4)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["fc2"] = jax.tree.map(jnp.zeros_like, variables["params"]["fc2"])
    np.testing.assert_array_equal(layer.apply(variables, x), 0.5 * x)


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(SqueezeExcite(reduction=4))
    contract.check_gate(SqueezeExcite.mobilenet_v3())


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (SqueezeExcite(), r"reduction=16 leaves no channel of 8: .* at most 8"),
        (SqueezeExcite(hidden_features=0), r"hidden_features=0 is below one"),
        (SqueezeExcite(divisor=0), r"divisor=0 is below one"),
        (SqueezeExcite.grouped(groups=3), r"groups=3 must divide both the 8 input"),
        (SqueezeExcite.grouped(groups=0), r"groups=0 is below 1"),
        (SqueezeExcite(groups=4, reduction=4), r"groups=4 must divide .* the 2 features"),
    ],
)
def test_what_it_cannot_do(layer, sentence):
    with pytest.raises(InputError, match=sentence):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


def test_bfloat16():
    contract.check_bfloat16(SqueezeExcite(reduction=4, kernel_init=nn.initializers.normal(0.03)))
