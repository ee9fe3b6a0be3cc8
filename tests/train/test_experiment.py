import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cluttered_digits, digit_groups, digits, imagenet_resnet50
from flaxattn.errors import InputError
from flaxattn.models import create_model
from flaxattn.tasks.task import abstract_batch
from flaxattn.train.config import option, require_valid
from flaxattn.train.experiment import TASKS, make_experiment

ONE = jax.devices()[:1]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((module, name) for module in (digits, digit_groups) for name in digits.SLOTS),
        *((cluttered_digits, name) for name in cluttered_digits.SLOTS),
    ],
)
def test_every_experiment_on_digits_in_full_is_a_run(data_dir, module, name):
    """The config as people start it: its task, model, data and schedule fit together."""
    config = module.get_config(name)
    config.data.data_dir = data_dir
    experiment = make_experiment(config, devices=ONE)
    assert experiment.total_steps == config.epochs * experiment.steps_per_epoch
    assert isinstance(experiment.task, TASKS[config.task])


@pytest.mark.parametrize("name", imagenet_resnet50.SLOTS)
def test_every_imagenet_experiment_is_a_resnet50(name):
    config = imagenet_resnet50.get_config(name)
    require_valid(config)
    model = create_model(dtype=jnp.dtype(config.dtype), **config.model)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count >= 25_557_032
    assert (count == 25_557_032) == (name == "none")


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        (None, ("scenes", "none", False)),
        ("", ("scenes", "none", False)),
        ("voc", ("voc", "none", False)),
        ("debug", ("scenes", "none", True)),
        ("voc,debug", ("voc", "none", True)),
        ("voc,se,debug", ("voc", "se", True)),
    ],
)
def test_the_argument_of_a_config(arg, expected):
    assert option(arg, "scenes", "none") == expected
    with pytest.raises(InputError, match="'x' is none: write a,b or a,b,debug"):
        option("a,b,x", "scenes", "none")


@pytest.mark.parametrize("name", ["config", "groups_config", "segment_config"])
def test_the_data_make_what_the_task_asks_for(name, request):
    config = request.getfixturevalue(name)
    experiment = make_experiment(config, devices=ONE)
    evaluation = abstract_batch(experiment.task, config.eval_batch_size)
    if name == "segment_config":  # training sees windows, evaluation whole images
        evaluation = {
            field: jax.ShapeDtypeStruct((x.shape[0], 128, 128, *x.shape[3:]), x.dtype)
            for field, x in evaluation.items()
        }
    evaluation["mask"] = jax.ShapeDtypeStruct((config.eval_batch_size,), np.float32)
    for batches, expected in (
        (
            experiment.train_batches(start_step=0),
            abstract_batch(experiment.task, config.batch_size),
        ),
        (experiment.eval_batches(), evaluation),
    ):
        with contextlib.closing(batches):
            batch = next(batches)
        assert {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch.items()} == expected


def test_each_example_counts_once_in_the_average_precision(groups_config):
    """Whatever the batch size and the number of devices, but for scores that rounding swaps."""
    results = []
    for batch_size, devices in ((500, 1), (96, 8)):
        groups_config.eval_batch_size = batch_size
        experiment = make_experiment(groups_config, devices=jax.devices()[:devices])
        metrics, _ = experiment.evaluate(experiment.new_state(experiment.start()))
        results.append(metrics)
    assert results[0]["count"] == 500
    assert results[1] == pytest.approx(results[0], rel=1e-3)
