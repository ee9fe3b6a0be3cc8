"""Phases: what learns in each, that the rest is frozen to the byte, and going on inside one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxattn import InputError, create_model
from flaxattn.tasks import Classification
from flaxattn.tasks.task import abstract_batch
from flaxattn.train.config import base_config
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import Preempted, run
from flaxattn.train.phases import make_phases
from flaxattn.train.sharding import make_mesh, to_devices
from flaxattn.train.state import TrainState
from flaxattn.train.step import empty_sums, make_train_step
from tests.train.runs import newest_state

THREE = (
    {"start": 0, "train": ("attention", "head"), "learning_rate": 0.01},
    {"start": 0.2, "train": ("attention", "head", "layer1_0/bn2", "layer1_0/conv2/kernel")},
    {"start": 0.3, "train": "all", "learning_rate": 1e-4},
)
SE = {("layer1_0", "se", layer, name) for layer in ("fc1", "fc2") for name in ("kernel", "bias")}
HEAD = {("fc", "kernel"), ("fc", "bias")}


@pytest.fixture
def config(config):
    config.phases = THREE
    config.optim.warmup_epochs = 0.0
    config.optim.decay = "none"
    return config


def phases(config, model=None):
    model = model or create_model(num_classes=10, **config.model)
    inputs = (jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32),)
    return make_phases(config, model, inputs, steps_per_epoch=20, total_steps=10)


def test_steps_rates_and_parts(config):
    found = phases(config)
    assert [(p.first_step, p.last_step) for p in found] == [(0, 4), (4, 6), (6, 10)]
    assert [float(p.schedule(0)) for p in found] == pytest.approx([0.01, 0.1, 1e-4])
    assert found[0].trainable == SE | HEAD
    inner = {("layer1_0", "bn2", "scale"), ("layer1_0", "bn2", "bias")}
    assert found[1].trainable == SE | HEAD | inner | {("layer1_0", "conv2", "kernel")}
    assert found[2].trainable is None


def test_without_phases_everything_learns(config):
    config.phases = ()
    (only,) = phases(config)
    assert (only.first_step, only.last_step, only.trainable) == (0, 10, None)


def test_patterns_name_modules_and_parameters(config):
    config.phases = ({"start": 0, "train": ("layer1_*/*/bias", "conv1")},)
    (only,) = phases(config)
    assert {path[-1] for path in only.trainable - {("conv1", "kernel")}} == {"bias"}
    assert {path[0] for path in only.trainable} == {"layer1_0", "conv1"}


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        (({"start": 1, "train": "all"},), "start after 1 epochs: let the first start at 0"),
        ((*THREE[:2], THREE[1]), r"start after 0, 0\.2, 0\.2 epochs"),
        (({"start": 0, "train": "all"}, {"start": 0.5, "train": "all"}), "all before the end"),
        (({"start": 0, "train": "al"},), "unknown part of the network to train 'al'"),
        (({"start": 0, "train": "layer9_*"},), "unknown part .* Known: .*layer1_0"),
        (({"start": 0, "train": ()},), "a phase trains nothing"),
        (({"start": 0},), "lacks train"),
        (({"start": "0", "train": "all"},), "start of a phase='0' must be a finite number"),
        (({"start": 0, "train": 3},), "train of a phase=3 must be"),
        (("all",), "a phase='all' must be a mapping"),
        (({"start": 0, "train": "all", "lr": 1},), "unknown field of a phase 'lr'"),
    ],
)
def test_refuses(config, described, sentence):
    config.phases = described
    with pytest.raises(InputError, match=sentence):
        phases(config)


def test_a_network_without_attention_cannot_train_it(config):
    with pytest.raises(InputError, match="'attention'"):
        phases(config, create_model("resnet10", stage_sizes=(1,), width=16))


def test_frozen_means_frozen(config):
    """Bytes: parameters and statistics stay, and the optimiser has no state of what is frozen."""
    config.optim.weight_decay = 0.1
    config.ema_decay = 0.0
    experiment = make_experiment(config, devices=jax.devices()[:1])
    state, sums = experiment.new_state(experiment.start()), experiment.new_sums()
    batches = experiment.train_batches(start_step=0)
    everything = set(flatten_dict(jax.device_get(state.params)))
    norms = set(flatten_dict(jax.device_get(state.batch_stats)))
    for index, phase in enumerate(experiment.phases):
        state = experiment.new_phases[index](state)
        before = jax.device_get(state)
        batch = to_devices(experiment.mesh, next(batches))
        state, sums = experiment.train_steps[index](state, sums, batch)
        after = jax.device_get(state)
        learns = everything if phase.trainable is None else phase.trainable
        moved = {path[:-1] for path in learns}
        for what, expected in (("params", learns), ("batch_stats", norms)):
            old, new = (flatten_dict(getattr(s, what)) for s in (before, after))
            changed = {path for path in old if old[path].tobytes() != new[path].tobytes()}
            if what == "params":
                assert changed <= expected
                assert len(changed) > len(expected) / 2
            else:
                assert changed == {path for path in norms if path[:-1] in moved}
        momenta = [x for x in jax.tree.leaves(after.opt_state) if np.ndim(x)]
        assert len(momenta) == len(learns)
    batches.close()


def test_frozen_norms_use_their_running_statistics(config):
    """The first phase trains no normalisation: a batch of equal images is no trouble to it."""
    experiment = make_experiment(config, devices=jax.devices()[:1])
    batch = {
        name: jnp.zeros((64, *x.shape), x.dtype) for name, x in experiment.task.example.items()
    }
    variables = experiment.start()
    _, sums = experiment.train_steps[0](
        experiment.new_state(variables), experiment.new_sums(), batch
    )
    logits = experiment.model.apply(variables, batch["image"])
    loss, _ = experiment.task.loss(logits, experiment.task.prepare(jax.random.key(0), batch))
    assert float(sums["loss"]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("stop", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_goes_on_inside_a_phase_and_at_its_end(config, tmp_path, monkeypatch, stop):
    config.phases = tuple(
        {**phase, "start": start} for phase, start in zip(THREE, (0, 0.05, 0.14), strict=True)
    )
    config.epochs = 0.25
    whole = run(config, tmp_path / "whole")
    monkeypatch.setattr(
        "flaxattn.train.checkpoint.Checkpoints.preempted", lambda _, step: step == stop
    )
    with pytest.raises(Preempted):
        run(config, tmp_path / "halves")
    monkeypatch.undo()
    assert run(config, tmp_path / "halves") == whole
    jax.tree.map(
        np.testing.assert_array_equal,
        newest_state(tmp_path / "halves"),
        newest_state(tmp_path / "whole"),
    )


@pytest.mark.slow
def test_no_backward_cost_below_what_learns():
    """VGG-16 with the article's attention behind conv5_3, at 224 x 224."""
    config = base_config()
    config.model = {"name": "vgg16", "attention": {"name": "sca", "stages": (5,), "blocks": "last"}}
    config.model.dropout = 0.0
    config.phases = ({"start": 0, "train": "attention"}, {"start": 50, "train": "all"})
    config.batch_size = 1
    task = Classification.of(config, num_classes=20)
    model = task.model(config.model, dtype=jnp.float32, param_dtype=jnp.float32)
    batch = abstract_batch(task, 1)
    inputs, mesh = task.inputs(batch), make_mesh(jax.devices()[:1])
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    sums = jax.eval_shape(lambda: empty_sums(task, config))
    flops = []
    for phase in make_phases(config, model, inputs, steps_per_epoch=1, total_steps=90):
        state = jax.eval_shape(
            lambda v, phase=phase: TrainState.starting(
                v, phase.optimizer, ema=False, trainable=phase.trainable
            ),
            variables,
        )
        step = make_train_step(model, task, phase, mesh, config)
        flops.append(step.lower(state, sums, batch).compile().cost_analysis()["flops"])
    assert flops[0] < 0.6 * flops[1], flops
