import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import EfficientChannel
from flaxattn.attention.efficient_channel import _convolved, _sum_of_taps
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import efficient_channel
from tests.torch_reference.torchvision_shim import timm

CASES = [
    Case(("eca",), {}, efficient_channel.ECALayer, "official"),
    Case(("eca.article_s0",), {}, efficient_channel.ECALayer, "articles"),
    Case(
        ("eca.article_s2",),
        {"kernel_size": 5},
        lambda: efficient_channel.ECALayer(5),
        "articles",
    ),
    Case(
        ("eca.official",),
        {"kernel_size": 7},
        lambda: efficient_channel.ECALayer(7),
        "official",
    ),
    Case(("eca.timm",), {}, lambda: timm.layers.EcaModule(32), "timm"),
    Case(
        ("eca.timm_mlp",),
        {},
        lambda: timm.layers.create_attn("ecam", 32),
        "timm",
        on=Inputs(maps=((13, 7), (1, 1))),
    ),
    Case(
        ("eca.timm_mlp, wider",),
        {"kernel_size": 5, "reduction": 2},
        lambda: efficient_channel.TwoLayers(16, 5),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(("ceca", "eca.circular"), {}, lambda: timm.layers.CecaModule(32), "timm"),
    Case(
        ("eca.circular, as far as it goes round",),
        {"kernel_size": 5},
        lambda: timm.layers.CecaModule(kernel_size=5),
        "timm",
        on=Inputs(maps=((13, 7),), features=2),
    ),
]


# mechanisms: channels -> kernel size by the paper's rule
RULE = {
    **{1: 1, 2: 1, 3: 1, 4: 1, 8: 3, 16: 3, 32: 3, 64: 3, 96: 3},
    **{128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7, 4096: 7},
}


def kernel_size(layer, features):
    x = jax.ShapeDtypeStruct((1, 1, 1, features), jnp.float32)
    return jax.eval_shape(layer.init, jax.random.key(0), x)["params"]["conv"]["kernel"].shape[0]


@pytest.mark.parametrize(("features", "expected"), RULE.items())
def test_kernel_size_follows_the_channels(features, expected):
    assert kernel_size(EfficientChannel(), features) == expected
    theirs = timm.layers.EcaModule(features).conv.kernel_size[0]
    assert kernel_size(EfficientChannel.timm(), features) == theirs == max(expected, 3)


@pytest.mark.parametrize("features", [8, 32, 96, 144, 200, 512])
def test_two_layers_are_as_wide_as_timms(features):
    x = jax.ShapeDtypeStruct((1, 1, 1, features), jnp.float32)
    params = jax.eval_shape(EfficientChannel.timm_mlp().init, jax.random.key(0), x)["params"]
    theirs = timm.layers.EcaModule(features, use_mlp=True)
    assert params["conv"]["kernel"].shape == (1, 1, theirs.conv.out_channels)
    assert params["conv2"]["kernel"].shape[0] == theirs.conv2.kernel_size[0]


def test_given_kernel_size_overrides_the_rule():
    assert kernel_size(EfficientChannel(kernel_size=9), 8) == 9
    assert kernel_size(EfficientChannel(gamma=1.0, b=0.0), 512) == 9


def test_the_trained_network_follows_neither_reading_of_the_rule():
    """ResNet-50's stages: what the blocks put out, and their inner width."""
    released = (3, 5, 5, 7)
    outputs = tuple(kernel_size(EfficientChannel(), c) for c in (256, 512, 1024, 2048))
    planes = tuple(kernel_size(EfficientChannel(), c) for c in (64, 128, 256, 512))
    assert outputs == (5, 5, 5, 7) != released
    assert planes == (3, 5, 5, 5) != released


def test_articles_use_three_where_the_paper_uses_five():
    paper, article = EfficientChannel(), EfficientChannel.article_s0()
    assert (kernel_size(paper, 256), kernel_size(article, 256)) == (5, 3)


def test_zero_kernel_halves_the_input():
    layer = EfficientChannel(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_a_gate_reads_its_neighbours_only():
    layer = EfficientChannel(kernel_size=3)
    pooled = jnp.zeros((1, 8))
    variables = layer.init(jax.random.key(1), jnp.zeros((1, 1, 1, 8)))
    reach = jax.jacobian(lambda z: layer.apply(variables, z, method="gate")[0])(pooled)[:, 0]
    distance = abs(np.subtract.outer(range(8), range(8)))
    np.testing.assert_array_equal(np.asarray(reach) != 0, distance <= 1)


def test_only_a_circular_one_has_no_first_channel():
    pooled = jax.random.normal(jax.random.key(0), (1, 8))
    for layer, same in ((EfficientChannel.circular(), True), (EfficientChannel.timm(), False)):
        variables = layer.init(jax.random.key(1), pooled, method="gate")
        gate = layer.apply(variables, pooled, method="gate")
        rolled = layer.apply(variables, jnp.roll(pooled, 3, axis=1), method="gate")
        assert np.allclose(rolled, jnp.roll(gate, 3, axis=1), rtol=1e-5) == same


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(EfficientChannel())
    contract.check_gate(EfficientChannel.circular())
    contract.check_gate(EfficientChannel.timm_mlp())


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (EfficientChannel(kernel_size=4), r"kernel_size=4 .* use an odd one, such as 3 or 5"),
        (EfficientChannel.circular(kernel_size=4), r"kernel_size=4 .* use an odd one"),
        (EfficientChannel.circular(kernel_size=7), r"kernel_size=7 .* 2 channels.* at most 5"),
        (EfficientChannel(min_kernel_size=4), r"^min_kernel_size=4 .* such as 3 or 5"),
        (EfficientChannel(reduction=0), r"reduction=0 is below one"),
        (EfficientChannel(gamma=0.0), r"gamma=0.0 is not positive"),
        (EfficientChannel(gamma=-2.0), r"gamma=-2.0 is not positive"),
        (EfficientChannel(padding="zero"), r"unknown padding 'zero': did you mean zeros"),
    ],
)
def test_what_it_cannot_do(layer, sentence):
    with pytest.raises(InputError, match=sentence):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))


def test_bfloat16():
    contract.check_bfloat16(EfficientChannel(kernel_init=lambda *_: jnp.full((3, 1, 1), 0.005)))


@pytest.mark.parametrize("hidden", [1, 8])
def test_other_platforms_sum_what_a_cpu_convolves(hidden):
    z = jax.random.normal(jax.random.key(0), (3, 20, hidden))
    kernel = jax.random.normal(jax.random.key(1), (5, hidden, 1))
    assert parity.difference(_sum_of_taps(z, kernel), _convolved(z, kernel)) < 1e-6
