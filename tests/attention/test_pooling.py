import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flaxattn.attention.pooling import maximum


@pytest.mark.parametrize(("shape", "axis"), [((2, 7, 3), 1), ((3, 2, 8), -1), ((5, 1), 1)])
@given(data=st.data())
def test_the_gradient_of_a_maximum_goes_to_the_first_that_holds_it(data, shape, axis):
    x = data.draw(hnp.arrays(np.float32, shape, elements=st.integers(-2, 2)))
    largest, pullback = jax.vjp(lambda x: maximum(x, axis), x)
    np.testing.assert_array_equal(largest, x.max(axis, keepdims=True))
    expected = np.zeros_like(x)
    np.put_along_axis(expected, x.argmax(axis, keepdims=True), 1, axis)
    np.testing.assert_array_equal(pullback(jnp.ones_like(largest))[0], expected)


def test_a_maximum_has_second_derivatives():
    x = jnp.asarray([[1.0, 3, 2]])
    curvature = jax.hessian(lambda x: jnp.sum(maximum(jnp.square(x), 1)))(x)
    np.testing.assert_array_equal(curvature.reshape(3, 3), np.diag([0, 2, 0]))


def test_a_maximum_keeps_bfloat16():
    x = jnp.asarray([[1, 2]], jnp.bfloat16)
    largest, pullback = jax.vjp(lambda x: maximum(x, 1), x)
    assert largest.dtype == pullback(largest)[0].dtype == jnp.bfloat16
