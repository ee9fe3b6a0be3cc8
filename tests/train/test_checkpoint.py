import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from flaxattn.train.checkpoint import Checkpoints
from flaxattn.train.sharding import make_mesh, replicated
from flaxattn.train.state import TrainState


@pytest.fixture
def init():
    def init(key):
        variables = nn.Dense(3).init(key, jnp.zeros((1, 5)))
        return TrainState.starting(variables, optax.adam(0.1), ema=True)

    return init


def born(init, devices, seed=0):
    sharding = replicated(make_mesh(jax.devices()[:devices]))
    return jax.jit(init, out_shardings=sharding)(jax.random.key(seed))


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 4), (8, 1), (1, 8)])
def test_bit_equal_on_other_devices(tmp_path, init, saved_on, restored_on):
    state = born(init, saved_on)
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(3, state)
    mesh = make_mesh(jax.devices()[:restored_on])
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        assert checkpoints.latest_step() == 3
        abstract = jax.eval_shape(init, jax.random.key(0))
        restored = checkpoints.restore(abstract, replicated(mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(leaf.sharding == replicated(mesh) for leaf in jax.tree.leaves(restored))


def test_only_the_newest_are_kept(tmp_path, init):
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, born(init, 1, seed=step))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_saving_a_step_again_is_nothing(tmp_path, init):
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(1, born(init, 1))
        checkpoints.save(1, born(init, 1, seed=1))


def test_a_half_written_save_is_none(tmp_path, init):
    """What a killed process leaves is not taken for a checkpoint, nor is it in the way of one."""
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        checkpoints.save(1, born(init, 1))
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "d").write_bytes(b"half")
    state = born(init, 1, seed=2)
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, state)
    assert not half.exists()
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        abstract = jax.eval_shape(init, jax.random.key(0))
        restored = checkpoints.restore(abstract, replicated(make_mesh(jax.devices()[:1])))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
