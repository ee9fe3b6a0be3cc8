import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import TripletAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference import triplet

MODELS = ("ChannelGateH.spatial", "ChannelGateW.spatial", "SpatialGate.spatial")

CASES = [
    Case(
        ("triplet", "triplet.official"),
        {},
        triplet.TripletAttention,
        "official",
        # Four samples of 1x1 leave batch norm four nearly equal values: torch's gradient of the
        # spatial kernel is then 1.0e-4 off in float32.
        exact=True,
    ),
    Case(
        ("triplet, names of the checkpoints",),
        {},
        lambda: triplet.TripletAttention(names=MODELS),
        "official_models",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("triplet, no spatial",),
        {"no_spatial": True},
        lambda: triplet.TripletAttention(no_spatial=True),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


@pytest.mark.parametrize("no_spatial", [False, True])
def test_zero_kernels_halve_the_input(x, no_spatial):
    layer = TripletAttention(no_spatial=no_spatial, kernel_init=nn.initializers.zeros)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    assert parity.difference(layer.apply(variables, x), 0.5 * x) < 1e-6


def test_parameters_do_not_grow_with_the_channels(x):
    variables = TripletAttention().init(jax.random.key(1), x)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == 300


def test_the_answer_is_x_times_the_mean_gate(x):
    layer = TripletAttention()
    y, sown = contract.sown(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    cw, hc, hw = (sown[branch]["attention"][0] for branch in ("cw", "hc", "hw"))
    gate = cw.transpose(0, 3, 2, 1) + hc.transpose(0, 1, 3, 2) + hw
    assert parity.difference(y, x * gate / 3) < 1e-6


def test_without_the_spatial_branch_one_value_is_many_channels(x):
    """A single vector: 32 values for cw and hc to normalise, one for hw."""
    vector = x[:1, :1, :1]

    def train(layer):
        variables = jax.jit(layer.init)(jax.random.key(1), vector)
        return layer.apply(variables, vector, train=True, mutable=["batch_stats"])[0]

    assert jnp.isfinite(train(TripletAttention(no_spatial=True))).all()
    with pytest.raises(InputError, match="more than one value per channel"):
        train(TripletAttention())


def test_even_kernel(x):
    with pytest.raises(InputError, match=r"kernel_size=4 .* use an odd one, such as 3 or 5"):
        TripletAttention(kernel_size=4).init(jax.random.key(0), x)


def test_bfloat16():
    contract.check_bfloat16(TripletAttention(kernel_init=nn.initializers.normal(0.002)))


def test_the_mean_is_rounded_once(x):
    """bfloat16 in, bfloat16 out; between them the three copies are summed in float32."""
    layer = TripletAttention()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    narrow = x.astype(jnp.bfloat16)
    exact = layer.apply(variables, narrow.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(layer.apply(variables, narrow), exact)
