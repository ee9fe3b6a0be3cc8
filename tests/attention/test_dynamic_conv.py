import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import DynamicConv
from flaxattn.attention.dynamic_conv import stepped_temperature_at, temperature_at
from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference.mixture import DynamicConv2d

SMALL = ((13, 7),)

CASES = [
    Case(
        ("dynamic_conv, groups, strides, dilation",),
        {"features": 24, "groups": 4, "strides": 2, "dilation": 2, "use_bias": False},
        lambda: DynamicConv2d(32, 24, 8, groups=4, stride=2, dilation=2, bias=False),
        "port",
        on=Inputs(maps=SMALL),
    ),
    Case(
        ("dynamic_conv, depthwise",),
        {"features": 32, "groups": 32, "num_kernels": 3, "temperature": 30.0},
        lambda: DynamicConv2d(32, 32, 8, groups=32, K=3, tau=30.0),
        "port",
        on=Inputs(maps=SMALL),
    ),
    Case(("dynamic_conv",), {"features": 32}, lambda: DynamicConv2d(32, 32, 8), "port"),
    Case(
        ("dynamic_conv.port, of images",),
        {"features": 32},
        lambda: DynamicConv2d(3, 32, 4, tau=34.0),
        "port",
        on=Inputs(maps=SMALL, features=3),
    ),
    Case(
        ("dynamic_conv.port",),
        {"features": 32},
        lambda: DynamicConv2d(32, 32, 9, tau=34.0),
        "port",
        on=Inputs(maps=SMALL),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (3, 5, 6, 8))


def start(layer, x):
    return jax.jit(layer.init)(jax.random.key(1), x)


def test_it_is_k_convolutions_mixed(x):
    """Mixing kernels or answers is the same, for a convolution is linear in its kernel."""
    layer = DynamicConv(4)
    variables = start(layer, x)
    variables["params"]["biases"] += jnp.arange(16.0).reshape(4, 4)
    y, sown = contract.sown(layer, variables, x)
    mixed = 0
    for k in range(4):
        kernels, biases = variables["params"]["kernels"], variables["params"]["biases"]
        one = {"kernel": kernels[k], "bias": biases[k]}
        share = sown["attention"][0][:, k, None, None, None]
        mixed += share * Conv(4, 3).apply({"params": one}, x)
    np.testing.assert_allclose(y, mixed, atol=1e-5)


def test_a_high_temperature_evens_the_kernels_out(x):
    layer = DynamicConv(4)
    variables = start(layer, x)
    variables["params"]["fc2"]["bias"] += jnp.arange(4.0)
    spread = [
        float(
            jnp.ptp(
                layer.apply(variables, x, False, tau, mutable="intermediates")[1]["intermediates"][
                    "attention"
                ][0][0]
            )
        )
        for tau in (1.0, 30.0)
    ]
    assert spread[0] > 0.5
    assert spread[1] < 0.05


def test_the_temperature_changes_without_a_new_compilation(x):
    layer = DynamicConv(4)
    variables = start(layer, x)
    traces = []

    @jax.jit
    def step(variables, x, tau):
        traces.append(tau)
        return layer.apply(variables, x, train=True, temperature=tau)

    answers = [step(variables, x, temperature_at(epoch)) for epoch in (0, 5, 10, 20)]
    assert len(traces) == 1
    np.testing.assert_allclose(answers[-1], layer.apply(variables, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        answers[0], DynamicConv(4, temperature=30.0).apply(variables, x), rtol=1e-5, atol=1e-6
    )
    assert abs(answers[0] - answers[-1]).max() > 1e-3


def test_schedules():
    assert [float(temperature_at(epoch)) for epoch in (0, 5, 10, 90)] == [30, 15.5, 1, 1]
    steps = [float(stepped_temperature_at(epoch)) for epoch in range(13)]
    assert steps[:2] == [34, 31]
    assert steps[10:] == [4, 1, 1]


@pytest.mark.parametrize("value", [0, -1.5])
def test_schedules_go_down(value):
    with pytest.raises(InputError, match=f"epochs={value} is not positive"):
        temperature_at(3, epochs=value)
    with pytest.raises(InputError, match=f"step={value} is not positive"):
        stepped_temperature_at(3, step=value)
    assert jax.jit(lambda n: temperature_at(5, epochs=n))(10.0) == 15.5


def test_each_kernel_starts_as_one_convolutions_does(x):
    kernels = start(DynamicConv(400), x)["params"]["kernels"]
    bound = (9 * 8) ** -0.5
    assert 0.99 * bound < abs(kernels).max() <= bound
    assert len({float(kernel.sum()) for kernel in kernels}) == 4


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": 0.0}, r"temperature=0.0 is not positive"),
        ({"num_kernels": 0}, "num_kernels=0 is below one"),
        ({"kernel_size": 2}, "kernel_size=2 cannot keep the size"),
        ({"groups": 3}, "groups=3 must divide both the 8 input channels and the 6 features"),
        ({"strides": 0}, "strides=0 is below one"),
        ({"reduction": 9}, "reduction=9 leaves no channel of 8"),
    ],
)
def test_what_it_cannot_do(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        start(DynamicConv(6, **fields), x)


def test_bfloat16():
    contract.check_bfloat16(DynamicConv(32, fc_init=nn.initializers.uniform(0.01)))
