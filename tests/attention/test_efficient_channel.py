import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import EfficientChannel
from flaxattn.errors import InputError
from tests.attention import contract
from tests.torch_reference.torchvision_shim import timm

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


def test_given_kernel_size_overrides_the_rule():
    assert kernel_size(EfficientChannel(kernel_size=9), 8) == 9
    assert kernel_size(EfficientChannel(gamma=1.0, b=0.0), 512) == 9


def test_articles_use_three_where_the_paper_uses_five():
    paper, article = EfficientChannel(), EfficientChannel.article_s0()
    assert (kernel_size(paper, 256), kernel_size(article, 256)) == (5, 3)


def test_zero_kernel_halves_the_input():
    layer = EfficientChannel(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    np.testing.assert_array_equal(layer.apply(layer.init(jax.random.key(1), x), x), 0.5 * x)


def test_a_gate_reads_its_neighbours_only():
    layer = EfficientChannel(kernel_size=3)
    pooled = jnp.zeros((1, 8))
    variables = layer.init(jax.random.key(1), jnp.zeros((1, 1, 1, 8)))
    reach = jax.jacobian(lambda z: layer.apply(variables, z, method="gate")[0])(pooled)[:, 0]
    distance = abs(np.subtract.outer(range(8), range(8)))
    np.testing.assert_array_equal(np.asarray(reach) != 0, distance <= 1)


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(EfficientChannel())


def test_even_kernel():
    with pytest.raises(InputError, match=r"kernel_size=4 .* use an odd one, such as 3 or 5"):
        EfficientChannel(kernel_size=4).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


def test_bfloat16():
    contract.check_bfloat16(EfficientChannel(kernel_init=lambda *_: jnp.full((3, 1, 1), 0.005)))
