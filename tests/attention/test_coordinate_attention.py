import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn import weights
from flaxattn.attention import CoordinateAttention, SimpleCoordinateAttention
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import coordinate_attention
from tests.torch_reference.torchvision_shim import timm

# On a 1x1 map of one sample batch norm sees the same mean twice, as row and as column: its variance
# is 0, and the gradients of conv1, multiplied by 1/sqrt(1e-5) = 316, cancel but for rounding. In
# float32 that left 2e-3 of the gradients' size (1e-4 is the bound), in float64 2e-12.
MAPS = ((56, 56), (13, 7), (2, 3))

CASES = [
    Case(
        ("coordinate", "coordinate.official"),
        {},
        lambda: coordinate_attention.CoordAtt(32),
        "official",
        on=Inputs(maps=MAPS, refused=((1, 1),)),
    ),
    Case(
        ("coordinate.official, one position",),
        {},
        lambda: coordinate_attention.CoordAtt(32),
        "official",
        on=Inputs(maps=((1, 1),)),
        modes=(False,),
    ),
    Case(
        ("coordinate.official, one position in train mode",),
        {},
        lambda: coordinate_attention.CoordAtt(32),
        "official",
        on=Inputs(maps=((1, 1),), batches=(4,)),
        modes=(True,),
    ),
    Case(
        ("coordinate.timm, one position",),
        {},
        lambda: timm.layers.coord_attn.CoordAttn(32),
        "timm",
        on=Inputs(maps=((1, 1),), batches=(4,)),
    ),
    Case(
        ("coordinate.timm",),
        {},
        lambda: timm.layers.coord_attn.CoordAttn(32),
        "timm",
        on=Inputs(maps=MAPS[1:], refused=((1, 1),)),
    ),
    Case(
        ("coordinate.timm, skip and biases, no norm",),
        {"skip": True, "use_bias": True, "norm": None},
        lambda: timm.layers.coord_attn.CoordAttn(32, has_skip=True, bias=True, norm_layer=None),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("simple_coordinate", "simple_coordinate.timm"),
        {},
        lambda: timm.layers.coord_attn.SimpleCoordAttn(32),
        "timm",
    ),
    Case(
        ("simple_coordinate.timm, skip",),
        {"skip": True, "use_bias": False},
        lambda: timm.layers.coord_attn.SimpleCoordAttn(32, has_skip=True, bias=False),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]

LAYERS = [CoordinateAttention, SimpleCoordinateAttention]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def width(layer, features, first):
    x = jax.ShapeDtypeStruct((1, 2, 2, features), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    return params[first]["kernel"].shape[-1]


@pytest.mark.parametrize(
    ("layer", "factor"), [(CoordinateAttention, 0.25), (SimpleCoordinateAttention, 0.5)]
)
def test_zero_kernels_leave_half_of_each_gate(x, layer, factor):
    """Two gates of one half are multiplied, two logits of zero are added."""
    layer = layer(kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), factor * x
    )


def test_one_position_of_one_sample_can_be_trained_on():
    """As in torch: the row and the column are two values for batch norm."""
    layer = CoordinateAttention()
    x = jnp.ones((1, 1, 1, 32))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, 0.25 * x, rtol=1e-6)  # normalised to 0, as all biases are


@pytest.mark.parametrize("features", [1, 31, 255, 256, 300, 1024])
def test_official_width_is_eight_at_least(features):
    assert width(CoordinateAttention(), features, "conv1") == max(8, features // 32)


@pytest.mark.parametrize("features", [4, 96, 288, 300, 1056])
def test_timm_rounds_the_width(features):
    theirs = timm.layers.coord_attn.CoordAttn(features).conv1.out_channels
    assert width(CoordinateAttention.timm(), features, "conv1") == theirs
    theirs = timm.layers.coord_attn.SimpleCoordAttn(features).fc1.out_features
    assert width(SimpleCoordinateAttention(), features, "fc1") == theirs


def test_a_gate_is_one_number_a_row_and_one_a_column(x):
    layer = CoordinateAttention()
    y, sown = contract.sown(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    gates = sown["attention"][0]
    np.testing.assert_allclose(y, x * gates["height"] * gates["width"], rtol=1e-6)
    assert jnp.std(gates["height"], axis=1).min() > 0
    assert jnp.std(gates["width"], axis=2).min() > 0


def test_weights_of_the_authors_mobilenet():
    """Its conv2 and conv3 are what coordatt.py calls conv_h and conv_w."""
    layer = CoordinateAttention()
    state = {k: v.numpy() for k, v in coordinate_attention.CoordAtt(32).state_dict().items()}
    renamed = {k.replace("conv_h", "conv2").replace("conv_w", "conv3"): v for k, v in state.items()}
    for naming in ("mbv2_ca", None):
        loaded = weights.load(layer, renamed, (1, 4, 4, 32), naming)
        jax.tree.map(
            np.testing.assert_array_equal, loaded, weights.load(layer, state, (1, 4, 4, 32))
        )


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (CoordinateAttention(reduction=0), "reduction=0 is below one"),
        (CoordinateAttention(reduction=33, minimum=0), "reduction=33 leaves no channel of 32"),
        (SimpleCoordinateAttention(reduction=-1), "reduction=-1 is below one"),
        (SimpleCoordinateAttention(reduction=64, divisor=None), "reduction=64 leaves no channel"),
    ],
)
def test_what_it_cannot_do(x, layer, sentence):
    with pytest.raises(InputError, match=sentence):
        layer.init(jax.random.key(0), x)


@pytest.mark.parametrize("layer", LAYERS)
def test_bfloat16(layer):
    contract.check_bfloat16(layer())
