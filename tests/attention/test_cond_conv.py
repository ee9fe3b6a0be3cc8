import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import weights
from flaxattn.attention import CondConv
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference.mixture import RoutedCondConv
from tests.torch_reference.torchvision_shim import timm

SMALL = ((13, 7),)

CASES = [
    Case(
        ("cond_conv",),
        {"features": 24},
        lambda: RoutedCondConv(32, 24, experts=8),
        "timm",
        on=Inputs(maps=((13, 7),), refused=((1, 1),)),
    ),
    Case(
        ("cond_conv, one position",),
        {"features": 24},
        lambda: RoutedCondConv(32, 24, experts=8),
        "timm",
        on=Inputs(maps=((1, 1),), dtypes=("float32",)),
        # torch's own backward pass of 1x1 maps fails in float64
    ),
    Case(
        ("cond_conv.timm, depthwise 5x5, strides, biases",),
        {"features": 32, "kernel_size": 5, "groups": 32, "strides": 2, "use_bias": True},
        lambda: RoutedCondConv(32, 32, kernel_size=5, groups=32, stride=2, bias=True),
        "timm",
        on=Inputs(maps=SMALL),
    ),
    Case(
        ("cond_conv.timm",),
        {"features": 32},
        lambda: RoutedCondConv(32, 32),
        "timm",
        on=Inputs(maps=((56, 56), (13, 7)), refused=((1, 1),)),
        # see above
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (3, 5, 6, 8))


def test_a_routing_from_outside_takes_the_place_of_its_own(x):
    layer = CondConv(4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y, sown = contract.sown(layer, variables, x)
    del variables["params"]["routing_fn"]
    routed = layer.apply(variables, x, routing=sown["attention"][0])
    np.testing.assert_array_equal(routed, y)
    given = layer.init(jax.random.key(1), x, routing=jnp.ones((3, 8)))
    assert given["params"].keys() == {"kernels"}


def test_experts_add_up(x):
    """Routed to all experts fully, it is one convolution by the sum of their kernels."""
    layer = CondConv(4)
    variables = layer.init(jax.random.key(1), x, routing=jnp.ones((3, 8)))
    kernels = variables["params"]["kernels"]
    one = CondConv(4, num_experts=1)
    summed = {"params": {"kernels": kernels.sum(0, keepdims=True)}}
    np.testing.assert_allclose(
        layer.apply(variables, x, routing=jnp.ones((3, 8))),
        one.apply(summed, x, routing=jnp.ones((3, 1))),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("fields", "routing", "sentence"),
    [
        ({"num_experts": 0}, None, "num_experts=0 is below one"),
        ({}, jnp.ones((3, 4)), r"routing has the shape \(3, 4\).*\(3, 8\)"),
        ({"groups": 16}, None, "groups=16 must divide both the 8 input channels"),
        (
            {"padding": 0, "kernel_size": 7},
            None,
            "kernel_size=7 with dilation=1 covers 7 .* axis of 5, 5 with padding=0",
        ),
        ({"padding": -1}, None, "padding=-1 is below zero"),
        ({"padding": (1, 1)}, None, r"padding=\(1, 1\) must be an integer or None\."),
        ({"kernel_size": 0}, None, "kernel_size=0 is below one"),
        ({"kernel_size": 0, "padding": 0}, None, "kernel_size=0 is below one"),
        ({"kernel_size": (3, 3)}, None, r"kernel_size=\(3, 3\) must be an integer\."),
        ({"strides": (2, 2)}, None, r"strides=\(2, 2\) must be an integer\."),
        ({"strides": 0}, None, "strides=0 is below one"),
    ],
)
def test_what_it_cannot_do(fields, routing, sentence, x):
    with pytest.raises(InputError, match=sentence):
        CondConv(4, **fields).init(jax.random.key(0), x, routing=routing)


def test_bfloat16():
    contract.check_bfloat16(CondConv(32, kernel_init=nn.initializers.normal(0.003)))


def test_padding_is_on_both_sides():
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    layer = CondConv(4, kernel_size=5, strides=2)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    bare = layer.clone(padding=0)
    padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    routing = jnp.ones((2, 8)) / 8  # which else would see the zeros
    kernels = {"params": {"kernels": variables["params"]["kernels"]}}
    np.testing.assert_allclose(
        bare.apply(kernels, padded, routing=routing),
        layer.apply(kernels, x, routing=routing),
        rtol=1e-6,
    )
    assert bare.apply(kernels, x, routing=routing).shape == (2, 1, 1, 4)


@pytest.mark.parametrize("bias", [True, False])
def test_timms_layer_loads_without_a_routing(x, bias):
    """Its two tensors are the whole of it: its block has the routing."""
    fields = {"kernel_size": 3, "groups": 2, "bias": bias}
    theirs = timm.layers.CondConv2d(8, 6, padding=1, num_experts=4, **fields)
    state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    layer = CondConv(6, groups=2, num_experts=4, use_bias=bias)
    loaded = weights.load_pretrained(layer, state, x.shape)
    assert loaded.naming == "timm_layer"
    assert loaded.variables["params"].keys() == ({"kernels", "biases"} if bias else {"kernels"})

    back = weights.to_torch(loaded.variables, "timm_layer", module=layer)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)

    routing = jax.random.uniform(jax.random.key(2), (3, 4))
    with torch.no_grad():
        expected = theirs(*(torch.tensor(np.array(a)) for a in (x.transpose(0, 3, 1, 2), routing)))
    y = layer.apply(loaded.variables, x, routing=routing)
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, atol=1e-5)


def test_a_wrong_kernel_is_not_its_routings_fault(x):
    with pytest.raises(InputError, match=r"misshapen: weight \(8, 7\)") as error:
        weights.load(CondConv(6), {"weight": np.ones((8, 7))}, x.shape, "timm_layer")
    assert "routing_fn" not in str(error.value)
