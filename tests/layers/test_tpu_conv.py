import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.layers import tpu_conv
from flaxattn.layers.conv import convolve
from flaxattn.layers.cpu_conv import Geometry, native

# (x without its batch, kernel, geometry)
CASES = {
    "outer": ((5, 1), (1, 1, 3), Geometry((1,), (0,), (1,))),
    "outer, strides": ((5, 8, 1), (1, 1, 1, 3), Geometry((2, 3), (0, 0), (1, 1))),
    "tall": ((9, 6, 2), (7, 7, 2, 1), Geometry((1, 1), (3, 3), (1, 1))),
    "wide": ((5, 8, 1), (3, 5, 1, 2), Geometry((1, 1), (1, 2), (1, 1))),
    "square, dilation": ((7, 7, 2), (3, 3, 2, 2), Geometry((1, 1), (2, 4), (2, 4))),
    "strides, little padding": ((6, 9, 3), (3, 4, 3, 4), Geometry((2, 3), (0, 2), (1, 2))),
    "one position": ((1, 1, 2), (7, 7, 2, 1), Geometry((1, 1), (3, 3), (1, 1))),
}


@pytest.mark.parametrize("case", CASES)
def test_is_xlas_own(case):
    shape, kernel_shape, geometry = CASES[case]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(2, *shape)), rng.normal(size=kernel_shape)
        faster = tpu_conv.formulation(x, kernel, geometry)
        assert faster is (tpu_conv.outer if case.startswith("outer") else tpu_conv.banded)

        @functools.partial(jax.jit, static_argnums=0)
        def run(convolution, x, kernel):
            y, pullback = jax.vjp(lambda *a: convolution(*a, geometry, None), x, kernel)
            return y, *pullback(jnp.cos(y))

        pairs = zip(run(faster, x, kernel), run(native, x, kernel), strict=True)
        for ours, expected in pairs:
            assert ours.shape == expected.shape
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "groups"),
    [
        ((8, 8, 3), (7, 7, 3, 64), 1),  # a stem
        ((8, 8, 4), (3, 3, 1, 4), 4),  # depthwise
        ((8, 8, 4), (1, 1, 1, 8), 4),  # groups of one channel
        ((8, 8, 2), (1, 7, 2, 1), 1),  # a strip
        ((1025, 1030, 1), (3, 3, 1, 1), 1),  # a long way between the bands
        ((8, 2), (3, 2, 1), 1),  # one axis
    ],
)
def test_left_to_xla(shape, kernel_shape, groups):
    axes = len(shape) - 1
    geometry = Geometry((1,) * axes, (0,) * axes, (1,) * axes, groups)
    x, kernel = jnp.zeros((1, *shape)), jnp.zeros(kernel_shape)
    assert tpu_conv.formulation(x, kernel, geometry) is None


def test_only_a_tpu_has_it():
    shape, kernel_shape, geometry = CASES["tall"]
    x, kernel = jnp.zeros((2, *shape)), jnp.zeros(kernel_shape)
    traced = jax.jit(lambda x, kernel: convolve(x, kernel, geometry)).trace(x, kernel)
    axes = {
        platform: traced.lower(lowering_platforms=(platform,))
        .as_text()
        .count("dim_numbers = [b, 0, f]")
        for platform in ("tpu", "cuda", "cpu")
    }
    assert axes == {"tpu": 1, "cuda": 0, "cpu": 0}
