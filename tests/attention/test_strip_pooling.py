import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import StripPooling
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case
from tests.torch_reference import strip_pooling

CASES = [
    Case(
        ("strip_pooling", "strip_pooling.official"),
        {},
        lambda: strip_pooling.StripPooling(32),
        "official",
    ),
]


def test_zero_kernels_halve_the_input():
    layer = StripPooling(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x
    )


def test_a_gate_reads_near_rows_and_columns_only():
    layer = StripPooling()
    x = jax.random.normal(jax.random.key(0), (1, 6, 7, 4))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    # Without its ReLU in the way every strip of reach is seen.
    variables["params"]["bn1"]["bias"] = jnp.full((4,), 9.0)

    def gate(x):
        return contract.sown(layer, variables, x)[1]["attention"][0][0, 3, 5, 1]

    reach = (np.asarray(jax.grad(gate)(x))[0] != 0).all(axis=-1)
    expected = np.zeros_like(reach)
    expected[2:5, :] = expected[:, 4:] = True
    np.testing.assert_array_equal(reach, expected)


def test_one_vector_a_strip_is_too_few_to_train_on():
    layer = StripPooling()
    x = jnp.ones((1, 5, 1, 8))  # one column, and batch norm has one mean of it
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    with pytest.raises(InputError, match=r"shape \(1, 1, 1, 8\) has one"):
        layer.apply(variables, x, train=True, mutable=["batch_stats"])


def test_even_kernel():
    with pytest.raises(InputError, match=r"kernel_size=4 .* use an odd one, such as 3 or 5"):
        StripPooling(kernel_size=4).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


def test_bfloat16():
    contract.check_bfloat16(StripPooling(), same_gate=False)
