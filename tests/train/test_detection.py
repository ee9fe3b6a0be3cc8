"""A detector is trained by train.py's loop: alike on any number of devices, and it goes on."""

import jax
import numpy as np
import pytest

from flaxattn.inspect.compiled import collectives
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import Preempted, run
from flaxattn.train.sharding import to_devices
from tests.train.runs import assert_same_on_eight_devices, newest_state


@pytest.fixture
def config(detect_config):
    return detect_config


def test_devices_exchange_nothing_but_sums(config):
    """Of gradients and losses."""
    losses = []
    for count in (1, 8):
        experiment = make_experiment(config, devices=jax.devices()[:count])
        state, sums = experiment.new_state(experiment.start()), experiment.new_sums()
        batches = experiment.train_batches(start_step=0)
        batch = to_devices(experiment.mesh, next(batches))
        batches.close()
        program = experiment.train_steps[0].lower(state, sums, batch).compile()
        assert collectives(program.as_text()).keys() == ({"all-reduce"} if count > 1 else set())
        _, sums = program(state, sums, batch)
        losses.append(jax.device_get(sums))
    for name, one in losses[0].items():
        np.testing.assert_allclose(losses[1][name], one, rtol=1e-4, err_msg=name)


def test_it_goes_on_bit_for_bit(config, tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    whole = run(config, tmp_path / "whole", devices=devices)
    assert 0 <= whole["mAP"] <= 1
    monkeypatch.setattr(
        "flaxattn.train.checkpoint.Checkpoints.preempted", lambda _, step: step == 2
    )
    with pytest.raises(Preempted):
        run(config, tmp_path / "halves", devices=devices)
    monkeypatch.undo()
    assert run(config, tmp_path / "halves", devices=devices) == whole
    jax.tree.map(
        np.testing.assert_array_equal,
        newest_state(tmp_path / "halves"),
        newest_state(tmp_path / "whole"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_devices_do_not_change_the_losses(config, name, tmp_path):
    """In float64, with norms that are frozen and with those of the second, which learn."""
    config.model.name = name
    config.dtype = "float64"
    config.log_every = 1
    assert_same_on_eight_devices(config, tmp_path)
