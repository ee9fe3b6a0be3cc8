"""The plain writings compute what the layers do: else the ratios of their bytes say nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.plain import PLAIN
from benchmarks.tpu import mechanism, train_mode
from flaxattn import ATTENTION

QUICK = ("cbam", "se", "sk")
# What differs from 4x14x14x128: the default groups of bat and fca want whole sevenths.
SHAPES = {"window": (2, 14, 14, 128), "halo": (2, 16, 16, 128), "psanet": (2, 7, 5, 32)}


def test_every_mechanism_has_one():
    assert sorted(PLAIN) == sorted(ATTENTION)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in sorted(PLAIN)],
)
def test_a_plain_writing_is_the_same_function(name):
    shape = SHAPES.get(name, (4, 14, 14, 128))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    layer = mechanism(name, shape[-1])
    variables = jax.jit(layer.init)(jax.random.key(0), x)

    def moved(p):
        # What starts at zero would hide the rest of the layer.
        return p + jnp.asarray(rng.normal(0, 0.1, p.shape), p.dtype)

    params = jax.tree.map(moved, variables.pop("params", {}))
    ours, _ = jax.jit(train_mode(layer))(params, variables, x)
    plain = jax.jit(PLAIN[name])(params, x)
    assert plain.dtype == ours.dtype
    np.testing.assert_allclose(plain, ours, rtol=0, atol=2e-5 * np.abs(ours).max())
