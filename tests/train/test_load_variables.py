"""A finished run's variables, without its config, optimiser or devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxattn import InputError, create_model, initialise
from flaxattn.train.checkpoint import Checkpoints, load_variables
from flaxattn.train.sharding import make_mesh, replicated
from flaxattn.train.state import TrainState

MODEL = create_model(
    "resnet10", stage_sizes=(1,), width=8, stem="small", num_classes=3, attention="eca"
)


def saved_state(workdir, *, ema):
    """A state on all devices, its averages unlike its parameters, saved as step 7."""
    variables = initialise(MODEL, jax.random.key(0), (1, 8, 8, 1))
    state = TrainState.starting(variables, optax.sgd(0.1, momentum=0.9), ema=ema)
    state = jax.device_put(state, replicated(make_mesh()))
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(7, state)
    checkpoints.close()
    return state


@pytest.mark.parametrize("ema", [False, True])
def test_what_evaluation_applies_comes_back_bit_for_bit(tmp_path, ema):
    state = saved_state(tmp_path, ema=ema)
    loaded = load_variables(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, state.variables())
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(loaded))
    assert MODEL.apply(loaded, jnp.ones((2, 8, 8, 1))).shape == (2, 3)


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoints"):
        load_variables(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_saved_nothing_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="saved nothing yet"):
        load_variables(tmp_path)
