import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import SqueezeExcite
from flaxattn.errors import InputError
from tests.attention import contract
from tests.torch_reference.torchvision_shim import timm


@pytest.mark.parametrize(("features", "reduction"), [(8, 16), (32, 16), (40, 4), (36, 3), (100, 7)])
def test_hidden_width_of_timm(features, reduction):
    layer = SqueezeExcite.timm(reduction=reduction)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, features)))["params"]
    theirs = timm.layers.SEModule(features, rd_ratio=1 / reduction)
    assert params["fc1"]["kernel"].shape[-1] == theirs.fc1.out_channels


def test_silent_last_layer_halves_the_input():
    layer = SqueezeExcite(reduction=4)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    variables = layer.init(jax.random.key(1), x)
    variables["params"]["fc2"] = jax.tree.map(jnp.zeros_like, variables["params"]["fc2"])
    np.testing.assert_array_equal(layer.apply(variables, x), 0.5 * x)


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(SqueezeExcite(reduction=4))


def test_reduction_that_leaves_no_channel():
    x = jnp.zeros((1, 4, 4, 8))
    with pytest.raises(InputError, match=r"reduction=16 leaves no channel of 8: .* at most 8"):
        SqueezeExcite().init(jax.random.key(0), x)


def test_bfloat16():
    contract.check_bfloat16(SqueezeExcite(reduction=4, kernel_init=nn.initializers.normal(0.03)))
