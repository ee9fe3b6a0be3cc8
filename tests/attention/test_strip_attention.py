import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import StripAttention
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference.torchvision_shim import timm

CASES = [
    Case(("strip", "strip.timm"), {}, lambda: timm.layers.coord_attn.StripAttn(32), "timm"),
    Case(
        ("strip.timm, kernel 5, biases, skip",),
        {"kernel_size": 5, "use_bias": True, "skip": True},
        lambda: timm.layers.coord_attn.StripAttn(32, kernel_size=5, bias=True, has_skip=True),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("strip.timm, no convolutions",),
        {"kernel_size": None},
        lambda: timm.layers.coord_attn.StripAttn(32, use_conv=False),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


def test_zero_kernels_halve_the_input():
    layer = StripAttention(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_a_gate_reads_its_own_channel_and_near_rows_and_columns_only():
    layer = StripAttention()
    x = jnp.zeros((1, 6, 7, 4))
    variables = jax.jit(layer.init)(jax.random.key(1), x)

    def gate(x):
        return contract.sown(layer, variables, x)[1]["attention"][0][0, 0, 0, 1]

    reach = np.asarray(jax.grad(gate)(x))[0] != 0
    expected = np.zeros_like(reach)
    expected[:2, :, 1] = expected[:, :2, 1] = True
    np.testing.assert_array_equal(reach, expected)


def test_even_kernel():
    with pytest.raises(InputError, match=r"kernel_size=4 .* use an odd one, such as 3 or 5"):
        StripAttention(kernel_size=4).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


def test_bfloat16():
    contract.check_bfloat16(StripAttention(kernel_init=nn.initializers.constant(0.005)))
