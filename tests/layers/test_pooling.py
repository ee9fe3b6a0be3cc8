import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flaxattn.layers.pooling import _by_reduction, _by_tournament, maximum


@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 7, 3), 1), ((3, 2, 8), -1), ((5, 1), 1), ((2, 3, 5, 2), (1, 2))]
)
@given(data=st.data())
def test_the_gradient_of_a_maximum_goes_to_the_first_that_holds_it(data, shape, axes):
    x = data.draw(hnp.arrays(np.float32, shape, elements=st.integers(-2, 2)))
    largest, pullback = jax.vjp(lambda x: maximum(x, axes), x)
    np.testing.assert_array_equal(largest, x.max(axes, keepdims=True))
    expected = np.zeros_like(x)
    last = np.moveaxis(x, axes, range(-np.size(axes), 0))
    first = last.reshape(*last.shape[: x.ndim - np.size(axes)], -1).argmax(-1)
    for position, number in np.ndenumerate(first):
        there = iter(np.unravel_index(number, last.shape[x.ndim - np.size(axes) :]))
        kept = iter(position)
        reduced = np.atleast_1d(axes) % x.ndim
        expected[tuple(next(there) if a in reduced else next(kept) for a in range(x.ndim))] = 1
    np.testing.assert_array_equal(pullback(jnp.ones_like(largest))[0], expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("axes", [(1, 2), (3,)])
def test_both_ways_to_a_maximum_are_equal(axes, dtype):
    """A CPU's and that of other platforms, with equal values and with NaN among them."""
    with jax.enable_x64(dtype == jnp.float64):
        x = jax.random.randint(jax.random.key(0), (2, 5, 3, 8), -3, 3).astype(dtype)
        x = x.at[0, 1, 1, 4].set(jnp.nan)
        for one, other in zip(_by_reduction(x, axes), _by_tournament(x, axes), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one.astype(float), other.astype(float))
        largest, _ = _by_reduction(x, axes)
        np.testing.assert_array_equal(
            largest.astype(float), x.max(axes, keepdims=True).astype(float)
        )


def test_the_gradient_of_a_maximum_compares_no_value_with_it():
    """XLA may compute one twice and round differently, and then nothing is equal."""
    x = jnp.zeros((2, 4, 4, 3))
    program = jax.jit(jax.grad(lambda x: maximum(jnp.sin(x), (1, 2)).sum())).trace(x)
    for platform in ("tpu", "cuda", "cpu"):
        lines = program.lower(lowering_platforms=(platform,)).as_text().splitlines()
        assert not [a for a in lines if "compare" in a and "tensor<2x4x4x3xf32>" in a], platform


def test_a_maximum_has_second_derivatives():
    x = jnp.asarray([[1.0, 3, 2]])
    curvature = jax.hessian(lambda x: jnp.sum(maximum(jnp.square(x), 1)))(x)
    np.testing.assert_array_equal(curvature.reshape(3, 3), np.diag([0, 2, 0]))


def test_a_maximum_keeps_bfloat16():
    x = jnp.asarray([[1, 2]], jnp.bfloat16)
    largest, pullback = jax.vjp(lambda x: maximum(x, 1), x)
    assert largest.dtype == pullback(largest)[0].dtype == jnp.bfloat16
