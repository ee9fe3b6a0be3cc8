"""Changing sizes against torch, where the frameworks' own functions disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from flaxattn.layers.resize import adaptive_average_pool, resize_bilinear, resize_nearest

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def compare(ours, theirs, old, new):
    x = np.random.default_rng(0).normal(size=(2, *old, 3))
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), new).numpy().transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        answer = np.asarray(jax.jit(ours, static_argnums=1)(x, new))
    np.testing.assert_allclose(answer, expected, rtol=1e-10, atol=1e-12)


@given(SIZES, SIZES)
def test_nearest(old, new):
    compare(resize_nearest, lambda x, size: functional.interpolate(x, size), old, new)


@pytest.mark.parametrize("align_corners", [False, True])
@given(SIZES, SIZES)
def test_bilinear(align_corners, old, new):
    compare(
        lambda x, size: resize_bilinear(x, size, align_corners=align_corners),
        lambda x, size: functional.interpolate(
            x, size, mode="bilinear", align_corners=align_corners
        ),
        old,
        new,
    )


@given(SIZES, SIZES)
def test_adaptive_average_pool(old, new):
    compare(adaptive_average_pool, functional.adaptive_avg_pool2d, old, new)


def test_jax_image_would_differ():
    x = jnp.arange(49.0).reshape(1, 7, 7, 1)
    theirs = jax.image.resize(x, (1, 5, 5, 1), "nearest")
    assert not np.allclose(resize_nearest(x, (5, 5)), theirs)
    theirs = jax.image.resize(x**2, (1, 3, 3, 1), "bilinear")
    assert not np.allclose(resize_bilinear(x**2, (3, 3)), theirs, atol=1)


@pytest.mark.parametrize("resize", [resize_nearest, resize_bilinear, adaptive_average_pool])
def test_dtype_stays(resize):
    assert resize(jnp.ones((1, 4, 4, 2), jnp.bfloat16), (3, 5)).dtype == jnp.bfloat16
