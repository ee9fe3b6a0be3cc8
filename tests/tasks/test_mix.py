import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn.tasks.mix import cutmix, mix, mixup


@pytest.fixture(scope="module")
def batch():
    """Images that are constant, each another number, so that every pixel says where it is from."""
    images = jnp.broadcast_to(jnp.arange(6.0).reshape(6, 1, 1, 1), (6, 16, 12, 3))
    return images, jnp.eye(6)


@pytest.mark.parametrize("seed", range(4))
def test_mixup_shares_images_as_it_shares_targets(batch, seed):
    images, targets = mixup(jax.random.key(seed), *batch, alpha=0.4)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    numbers = targets @ jnp.arange(6.0)
    np.testing.assert_allclose(images[:, 0, 0, 0], numbers, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), alpha=st.sampled_from([0.2, 1.0, 5.0]))
def test_cutmix_targets_are_the_areas(batch, seed, alpha):
    images, targets = jax.jit(cutmix, static_argnames="alpha")(
        jax.random.key(seed), *batch, alpha=alpha
    )
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    own_area = (images[1:] == batch[0][1:]).mean((1, 2, 3))
    np.testing.assert_allclose(jnp.diag(targets)[1:], own_area, rtol=1e-5)
    # What is not an image's own is its neighbour's, in one box.
    other = images[3, :, :, 0] != 3.0
    assert bool(jnp.all(jnp.where(other, images[3, :, :, 0], 2.0) == 2.0))
    rows, columns = other.any(1), other.any(0)
    assert bool(jnp.all(other == rows[:, None] & columns[None, :]))


def test_nothing_is_mixed_with_both_off(batch):
    images, targets = mix(jax.random.key(0), *batch, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert images is batch[0]
    assert targets is batch[1]


def test_with_both_on_each_rule_has_its_turn(batch):
    """CutMix leaves whole numbers in the images, mixup does not."""
    both = jax.jit(functools.partial(mix, mixup_alpha=1.0, cutmix_alpha=1.0))
    whole = [
        bool(jnp.all(images == jnp.round(images)))
        for seed in range(16)
        for images, _ in [both(jax.random.key(seed), *batch)]
    ]
    assert 2 < sum(whole) < 14
