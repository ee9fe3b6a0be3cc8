import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention.parts.mixture import by_groups, by_taps
from flaxattn.layers.cpu_conv import Geometry

GEOMETRIES = {
    "dense": Geometry((1, 1), (1, 1), (1, 1), 1),
    "groups, strides": Geometry((2, 2), (0, 0), (1, 1), 2),
    "depthwise, dilation": Geometry((1, 1), (2, 2), (2, 2), 6),
}


@pytest.mark.parametrize("case", GEOMETRIES)
def test_taps_and_groups_are_one_function(case):
    geometry = GEOMETRIES[case]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(3, 7, 5, 6))
        kernels = rng.normal(size=(3, 3, 3, 6 // geometry.groups, 6))

        @functools.partial(jax.jit, static_argnums=0)
        def run(convolution, x, kernels):
            y, pullback = jax.vjp(functools.partial(convolution, geometry=geometry), x, kernels)
            return y, *pullback(jnp.cos(y))

        pairs = zip(run(by_taps, x, kernels), run(by_groups, x, kernels), strict=True)
        for ours, expected in pairs:
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)
