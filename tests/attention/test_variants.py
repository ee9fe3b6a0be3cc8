"""With equal weights, different variants of a mechanism are different functions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import ATTENTION, create_attention
from flaxattn.errors import InputError
from tests.attention.examples import fields

# Some variants differ only in how a width follows from the channels.
CHANNELS = (32, 136, 4)


@functools.cache
def behaviour(name, variant, channels):
    """What a variant does with given weights: in eval mode, in train mode, and to its statistics.

    None where the variant refuses so many channels.
    """
    x = np.random.default_rng(0).normal(size=(2, 4, 8, channels)).astype(np.float32)
    layer = create_attention(name, variant=variant, **fields(name, variant))
    try:
        shapes, tree = jax.tree.flatten(jax.eval_shape(layer.init, jax.random.key(1), x))
    except InputError:
        return None
    rng = np.random.default_rng(0)
    weights = [abs(rng.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in shapes]
    given = jax.tree.unflatten(tree, weights)

    def run(given, key, x):
        trained = layer.apply(given, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return layer.apply(given, x), trained

    seen = jax.jit(run)(given, jax.random.key(1), x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen))
    return given, seen


def start(name, variant):
    """The weights that a variant begins with."""
    layer = create_attention(name, variant=variant, **fields(name, variant))
    return layer.init(jax.random.key(1), jnp.ones((2, 4, 8, CHANNELS[0])))


def differ(one, other):
    """Whether two behaviours differ; parameters of other shapes do."""
    if jax.tree.map(jnp.shape, one) != jax.tree.map(jnp.shape, other):
        return True
    return any(
        not np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def pairs():
    """(name, variant, other variant) of all that differ in some field; None is the default."""
    for name, make in ATTENTION.items():
        layers = {}
        for variant in (None, *getattr(make, "variants", ())):
            layer = create_attention(name, variant=variant, **fields(name, variant))
            if layer not in layers.values():  # by its fields it may be the default, or another
                layers[variant] = layer
        yield from ((name, *pair) for pair in itertools.combinations(layers, 2))


def test_nothing_differs_from_itself_and_all_from_another_number():
    for value in (1.0, np.nan, np.inf):
        assert not differ((value,), (value,))
        assert differ((value,), (2.0,))


@pytest.mark.parametrize(("name", "one", "other"), list(pairs()))
def test_no_two_variants_are_one(name, one, other):
    for channels in CHANNELS:
        seen = behaviour(name, one, channels), behaviour(name, other, channels)
        if all(seen) and differ(*seen):
            return
    # The same function of its weights: then a preset is of their start, or there is no difference.
    assert differ(start(name, one), start(name, other)), f"{name}: {one} and {other} are the same"
