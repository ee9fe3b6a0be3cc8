"""Debug-sized runs on digit scenes: resumed bit for bit, the same on eight devices as on one."""

import jax
import numpy as np
import pytest

from configs import voc_classify, voc_segment
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import Preempted, run
from flaxattn.train.sharding import to_devices
from tests.train.runs import assert_same_on_eight_devices, losses, newest_state

ONE = jax.devices()[:1]
CONFIGS = [
    *((voc_segment, arg) for arg in ("scenes,danet_position", "voc2012", "voc2012,sca,debug")),
    *((voc_classify, f"scenes,{name}") for name in voc_classify.SLOTS),
    *((voc_classify, f"voc2012,sca,{name}") for name in voc_classify.NETWORKS),
    (voc_classify, "voc2012,none,mobilenet_v3"),
]


@pytest.mark.parametrize(("module", "arg"), CONFIGS)
def test_every_experiment_is_a_run(scenes_root, module, arg):
    """The config as people start it: its task, model, data, phases and schedule fit together."""
    config = module.get_config(arg)
    config.data.data_dir = str(scenes_root)
    config.batch_size = 4
    experiment = make_experiment(config, devices=ONE)
    assert experiment.total_steps >= len(experiment.phases)


@pytest.mark.parametrize("name", ["classify_config", "segment_config"])
def test_resumed_it_is_bit_equal_and_devices_do_not_matter(name, request, tmp_path, monkeypatch):
    config = request.getfixturevalue(name)
    whole = run(config, tmp_path / "whole", devices=ONE)
    with monkeypatch.context() as patch:
        patch.setattr("flaxattn.train.checkpoint.Checkpoints.preempted", lambda _, step: step == 3)
        with pytest.raises(Preempted):
            run(config, tmp_path / "halves", devices=ONE)
    assert run(config, tmp_path / "halves", devices=ONE) == whole
    jax.tree.map(
        np.testing.assert_array_equal,
        newest_state(tmp_path / "halves"),
        newest_state(tmp_path / "whole"),
    )
    assert whole["count"] == 6

    experiment = make_experiment(config)
    batches = experiment.train_batches(start_step=0)
    batch = to_devices(experiment.mesh, next(batches))
    batches.close()
    state, sums = experiment.new_state(experiment.start()), experiment.new_sums()
    _, sums = experiment.train_steps[0](state, sums, batch)
    assert float(sums["loss"]) == pytest.approx(losses(tmp_path / "whole")[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify_config", "segment_config"])
def test_devices_do_not_change_the_losses(name, request, tmp_path):
    """In float64 it is the same function, through all of a run and in its evaluations."""
    config = request.getfixturevalue(name)
    config.dtype = "float64"
    assert_same_on_eight_devices(config, tmp_path)
