"""Every mechanism in NNX, through Flax's own bridge: the two lines that README gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxattn.attention import ATTENTION, create_attention
from tests.attention.examples import fields

X = jax.random.normal(jax.random.key(0), (2, 4, 8, 32))


def linen_variables(module):
    """What the bridge keeps, as the wrapped module has it."""
    pure = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    statistics = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    return {"params": pure, "batch_stats": statistics}


# Those that take seconds to compile and have nothing for the bridge that the others lack.
LONG = {
    "bat",
    "botnet",
    "ela",
    "generalized",
    "global_context",
    "grouped_se",
    "gsop",
    "halo",
    "lambda",
    "lka",
    "lsk",
    "lska",
    "multi_head",
    "polarized",
    "psanet",
    "pyramid_squeeze",
    "sca_cnn",
    "sca_residual",
    "shuffle",
    "spatial_separable",
    "strip",
    "window",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in ATTENTION]
)
def test_works_in_nnx(name):
    layer = create_attention(name, **fields(name))
    module = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(X)

    @nnx.jit
    def step(module, x):
        def loss(module):
            return jnp.sum(jnp.sin(module(x, train=True, mutable=["batch_stats"])))

        return module(x), nnx.grad(loss)(module)

    before = jax.tree.map(jnp.array, linen_variables(module))

    def expected(variables, x):
        moved = layer.apply(variables, x, train=True, mutable=["batch_stats"])[1]
        return layer.apply(variables, x), moved

    answer, moved = jax.jit(expected)(before, X)
    ours, gradients = step(module, X)
    np.testing.assert_allclose(ours, answer, rtol=1e-4, atol=1e-5)

    gradients = nnx.to_pure_dict(gradients)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    shapes = jax.tree.map(jnp.shape, before["params"])
    assert jax.tree.map(jnp.shape, gradients) == shapes

    after = jax.tree.leaves(linen_variables(module)["batch_stats"])
    for ours, wanted in zip(after, jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)
    if after:
        old = jax.tree.leaves(before["batch_stats"])
        assert any(not np.allclose(new, old) for new, old in zip(after, old, strict=True))


def test_a_variant_with_batch_statistics():
    layer = create_attention("cbam", variant="official")
    module = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(X)
    module(X)
    assert module.spatial["bn"]["mean"].get_value() == 0
    nnx.jit(lambda module, x: module(x, train=True, mutable=["batch_stats"]))(module, X)
    assert module.spatial["bn"]["mean"].get_value() != 0
