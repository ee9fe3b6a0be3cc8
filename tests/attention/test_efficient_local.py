import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import EfficientLocal
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import efficient_local
from tests.torch_reference.torchvision_shim import timm

CASES = [
    Case(("ela", "ela.base"), {}, lambda: efficient_local.EfficientLocal(32), "circulating"),
    Case(
        ("ela.tiny",),
        {},
        lambda: efficient_local.EfficientLocal(32, 5, num_groups=32),
        "circulating",
        on=Inputs(maps=((13, 7),), refused=((1, 1),)),
    ),
    # One value in each group, which the norm takes away: of a single sample torch refuses that.
    Case(
        ("ela.tiny, one position",),
        {},
        lambda: efficient_local.EfficientLocal(32, 5, num_groups=32),
        "circulating",
        on=Inputs(maps=((1, 1),), batches=(4,)),
        cancelled=("conv.weight", "gn.weight"),
    ),
    Case(
        ("ela.small",),
        {},
        lambda: efficient_local.EfficientLocal(32, 5, groups=4),
        "circulating",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("ela.large",),
        {},
        lambda: efficient_local.EfficientLocal(32, 7, groups=4),
        "circulating",
        on=Inputs(maps=((13, 7),), refused=((1, 1),)),
    ),
    # The norm all but takes the kernel's scale away: torch's own float32 gradient is 4e-4 off.
    Case(
        ("ela.large, one position",),
        {},
        lambda: efficient_local.EfficientLocal(32, 7, groups=4),
        "circulating",
        on=Inputs(maps=((1, 1),)),
        cancelled=("conv.weight",),
    ),
    Case(("ela.timm",), {}, lambda: timm.layers.coord_attn.EfficientLocalAttn(32), "timm"),
    Case(
        ("ela.timm, skip",),
        {"skip": True, "use_bias": True},
        lambda: timm.layers.coord_attn.EfficientLocalAttn(32, has_skip=True, bias=True),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 4, 6, 32))


def test_zero_kernels_quarter_the_input(x):
    layer = EfficientLocal(kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.25 * x
    )


def test_shared_weights_treat_both_axes_alike(x):
    def transposed(layer):
        variables = jax.jit(layer.init)(jax.random.key(1), x)
        y = layer.apply(variables, x)
        return abs(layer.apply(variables, x.swapaxes(1, 2)).swapaxes(1, 2) - y).max()

    assert transposed(EfficientLocal()) < 1e-5
    assert transposed(EfficientLocal.timm()) > 1e-3


def test_parameter_counts():
    """k C channels_per_group + 2C, of both axes together or of each."""

    def count(layer):
        x = jax.ShapeDtypeStruct((1, 7, 7, 256), jnp.float32)
        params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
        return sum(p.size for p in jax.tree.leaves(params))

    assert count(EfficientLocal.tiny()) == 5 * 256 + 512
    assert count(EfficientLocal.base()) == 7 * 256 + 512
    assert count(EfficientLocal.small()) == 5 * 256 * 8 + 512
    assert count(EfficientLocal.large()) == 7 * 256 * 8 + 512
    assert count(EfficientLocal.timm()) == 2 * (7 * 256 + 512)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kernel_size": 4}, "kernel_size=4 cannot keep the size"),
        ({"channels_per_group": 3}, "channels_per_group=3 does not divide the 32 channels"),
        ({"channels_per_group": 0}, "channels_per_group=0 does not divide the 32 channels"),
        ({"num_groups": 64}, "num_groups=64 does not divide the 32 channels: use a divisor of 32"),
        ({"num_groups": -1}, "num_groups=-1 does not divide"),
    ],
)
def test_what_it_cannot_do(x, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        EfficientLocal(**fields).init(jax.random.key(0), x)


def test_bfloat16():
    contract.check_bfloat16(EfficientLocal())
