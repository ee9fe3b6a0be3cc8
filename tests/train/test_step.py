import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec
from sklearn.metrics import average_precision_score

from flaxattn.layers.initialise import initialise_for
from flaxattn.tasks import Classification, MultiLabel
from flaxattn.tasks.task import Measured, abstract_batch, add_up
from flaxattn.train import sharding
from flaxattn.train.config import base_config
from flaxattn.train.phases import Phase
from flaxattn.train.state import TrainState
from flaxattn.train.step import empty_sums, make_eval_step, make_train_step

CLASSES = 4
IMAGE_SHAPE = (6, 6, 1)


class SmallNet(nn.Module):
    """A convolution with or without dropout; no batch statistics."""

    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2))
        x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


@pytest.fixture
def config():
    config = base_config()
    config.batch_size = 16
    config.data.image_size, _, config.data.channels = IMAGE_SHAPE
    return config


def batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, *IMAGE_SHAPE)).astype(np.float32),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
    }


class Run:
    """A step with its state, on `devices` devices."""

    def __init__(
        self, config, model=None, devices=1, rate=0.1, task=Classification, trainable=None
    ):
        model = model or SmallNet()
        self.mesh = sharding.make_mesh(jax.devices()[:devices])
        self.task = task.of(config, num_classes=CLASSES)
        optimizer = optax.sgd(rate)
        schedule = optax.constant_schedule(rate)
        phase = Phase(0, 100, trainable, schedule, optimizer)
        self.step = make_train_step(model, self.task, phase, self.mesh, config)
        inputs = self.task.inputs(abstract_batch(self.task, 1))
        variables = initialise_for(model, jax.random.key(0), inputs)
        place = functools.partial(jax.jit, out_shardings=sharding.replicated(self.mesh))
        start = functools.partial(
            TrainState.starting,
            optimizer=optimizer,
            ema=bool(config.ema_decay),
            trainable=trainable,
        )
        self.state: TrainState = place(start)(variables)
        self.sums = place(lambda: empty_sums(self.task, config))()

    def take(self, *batches):
        for rows in batches:
            on_devices = sharding.to_devices(self.mesh, rows)
            self.state, self.sums = self.step(self.state, self.sums, on_devices)
        return self


def assert_close(left, right, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


def test_a_step_is_gradient_descent_on_the_mean_loss(config):
    run = Run(config)
    model, params = SmallNet(), jax.device_get(run.state.params)
    rows = batch()

    def loss(params):
        logits = model.apply({"params": params}, rows["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows["label"]).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    run.take(rows)
    assert_close(run.state.params, expected, rtol=1e-5, atol=1e-7)
    assert float(run.sums["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(run.sums["grad_norm"]) == pytest.approx(float(optax.tree.norm(gradient)), 1e-5)
    assert int(run.state.step) == 1


@pytest.mark.parametrize("devices", [1, 8])
def test_micro_batches_add_up_to_the_batch(config, devices):
    whole = Run(config, devices=devices).take(batch(1))
    config.optim.accumulation = 2
    split = Run(config, devices=devices).take(batch(1))
    assert_close(split.state.params, whole.state.params, rtol=1e-5, atol=1e-7)
    assert float(split.sums["loss"]) == pytest.approx(float(whole.sums["loss"]), rel=1e-6)


def test_micro_batches_need_no_gathering(config):
    """Each device splits the rows it has: no collective but the sum of the gradients."""
    config.optim.accumulation = 2
    run = Run(config, devices=8)
    rows = sharding.to_devices(run.mesh, batch())
    text = run.step.lower(run.state, run.sums, rows).compile().as_text()
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.0, 0.0), (0.4, 1.0)])
def test_devices_do_not_change_the_run(config, mixup_alpha, cutmix_alpha):
    """Dropout and mixing included."""
    config.mixup_alpha, config.cutmix_alpha = mixup_alpha, cutmix_alpha
    batches = [batch(seed) for seed in range(4)]
    one = Run(config, SmallNet(drop_rate=0.3)).take(*batches)
    eight = Run(config, SmallNet(drop_rate=0.3), devices=8).take(*batches)
    assert_close(eight.state.params, one.state.params, rtol=1e-5, atol=1e-6)
    assert_close(eight.sums, one.sums, rtol=1e-5)


def test_dropout_follows_seed_and_step(config):
    model = SmallNet(drop_rate=0.5)
    first, again = (Run(config, model).take(batch(), batch()) for _ in range(2))
    assert_close(first.state.params, again.state.params, rtol=0)
    config.seed = 1
    other = Run(config, model).take(batch(), batch())
    assert float(other.sums["loss"]) != float(first.sums["loss"])


def test_averages_follow_the_parameters(config):
    config.ema_decay = 0.5
    run = Run(config)
    start = jax.device_get(run.state.params)
    run.take(batch())
    after = jax.device_get(run.state.params)
    # The first step's rate is min(0.5, 1 / 10).
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start, after)
    assert_close(run.state.ema["params"], expected, rtol=1e-5, atol=1e-7)
    assert run.state.variables() is run.state.ema


def test_without_averages_the_parameters_are_evaluated(config):
    run = Run(config)
    assert run.state.ema == {}
    assert run.state.variables()["params"] is run.state.params


def test_it_is_traced_once(config):
    traces = []

    class Traced(SmallNet):
        def __call__(self, x, train=False):
            if train:
                traces.append(x.shape)
            return super().__call__(x, train)

    run = Run(config, Traced(), devices=8)
    traces.clear()
    run.take(*[batch(seed) for seed in range(5)])
    assert len(traces) == 1


def test_state_and_sums_are_donated(config):
    run = Run(config)
    before = jax.tree.leaves((run.state, run.sums))
    run.take(batch())
    assert all(array.is_deleted() for array in before)


def test_the_first_step_that_is_not_finite_is_kept(config):
    bad = batch()
    bad["image"][3] = np.nan
    run = Run(config, devices=8).take(batch(), bad, batch())
    assert int(run.sums["first_bad_step"]) == 2
    assert int(Run(config).take(batch()).sums["first_bad_step"]) == -1


def test_parameters_that_are_not_finite_are_noticed_at_their_step(config):
    """Loss and gradient of the step that ruins them are fine."""
    run = Run(config, rate=1e30).take(batch())
    assert np.isfinite(run.sums["loss"])
    assert np.isfinite(run.sums["grad_norm"])
    assert int(run.sums["first_bad_step"]) == 1


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_masked_rows_not_at_all(config, devices):
    run = Run(config, devices=devices)
    step = make_eval_step(SmallNet(), run.task, run.mesh)
    rows = batch(size=16)
    rows["mask"] = np.float32(np.arange(16) < 11)
    rows["image"][11:] = np.nan
    found = step(run.state.variables(), sharding.to_devices(run.mesh, rows))
    (sums, records), count = add_up([jax.device_get(found[:2])])
    logits = SmallNet().apply(jax.device_get(run.state.variables()), rows["image"][:11])
    labels = rows["label"][:11]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert count == 11
    assert records == {}
    assert sums["loss"] == pytest.approx(float(losses.sum()), rel=1e-5)
    assert sums["accuracy"] == float(jnp.sum(logits.argmax(-1) == labels))


class FirstPixel(nn.Module):
    """The channels of the first pixel are the logits."""

    def __call__(self, x, train=False):
        return x[:, 0, 0]


@pytest.mark.parametrize("devices", [1, 8])
def test_records_of_all_devices_and_batches_make_the_average_precision(devices):
    """Scikit-learn's of all examples, exactly, though the padding is not a number."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-9, 9, (27, CLASSES)).astype(np.float32)
    labels = rng.integers(0, 2, (27, CLASSES)).astype(np.int32)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    task = MultiLabel(CLASSES, (1, 1, CLASSES))
    step = make_eval_step(FirstPixel(), task, mesh)
    measured = []
    for start in (0, 16):
        images = np.full((16, 1, 1, CLASSES), np.nan, np.float32)
        rows = {"label": np.ones((16, CLASSES), np.int32), "mask": np.zeros(16, np.float32)}
        there = len(scores[start : start + 16])
        images[:there, 0, 0] = scores[start : start + 16]
        rows["label"][:there] = labels[start : start + 16]
        rows["mask"][:there] = 1
        found = step({}, sharding.to_devices(mesh, rows | {"image": images}))
        measured.append((found.measured, found.mask))
    total, count = add_up(jax.device_get(measured))
    np.testing.assert_array_equal(total.records["score"], scores)
    metrics = task.finish(total, count)
    assert count == 27
    assert metrics["exact_match"] == np.mean(np.all((scores > 0) == labels, axis=-1))
    assert metrics["mAP"] == pytest.approx(average_precision_score(labels, scores), rel=1e-12)
    assert np.isfinite(metrics["loss"])


class Quadrants(nn.Module):
    """A score for each pixel; what it returns sorted is sorted on each device for itself."""

    @nn.compact
    def __call__(self, x, train=False):
        scores = nn.Dense(CLASSES)(x)
        best = scores[..., 0].reshape(len(x), -1)
        if jax.sharding.get_abstract_mesh().empty:  # while it is initialised
            return scores, jnp.sort(best)
        rows = PartitionSpec("data")
        return scores, jax.shard_map(jnp.sort, in_specs=rows, out_specs=rows)(best)


class Segmentation(Classification):
    """A task unlike the others: several outputs, a confusion matrix, records of a fixed size."""

    logged = ("largest",)

    def prepare(self, key, batch):
        return batch

    def loss(self, outputs, batch):
        scores, best = outputs
        targets = self.targets(batch["label"])[:, None, None]
        loss = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(scores), -1)) + best[:, -1].mean()
        return loss, {"largest": jnp.max(best)}

    def measure(self, outputs, batch):
        scores, best = outputs
        found = jax.nn.one_hot(scores.argmax(-1).reshape(len(best), -1), self.num_classes)
        truth = jax.nn.one_hot(batch["label"], self.num_classes)
        confusion = jnp.einsum("npf,nt->ntf", found, truth)
        return Measured({"confusion": confusion}, {"best": best[:, -3:]})

    def predict(self, outputs):
        return outputs[0].argmax(-1)


def test_another_kind_of_task_fits_on_one_device_and_on_eight(config):
    runs = [
        Run(config, Quadrants(), devices, task=Segmentation).take(batch(0), batch(1))
        for devices in (1, 8)
    ]
    assert_close(runs[1].state.params, runs[0].state.params, rtol=1e-5, atol=1e-7)
    assert_close(runs[1].sums, runs[0].sums, rtol=1e-5)
    rows = batch(2) | {"mask": np.float32(np.arange(16) < 11)}
    rows["image"][11:] = np.nan
    totals = []
    for run in runs:
        step = make_eval_step(Quadrants(), run.task, run.mesh)
        found = step(run.state.variables(), sharding.to_devices(run.mesh, rows))
        totals.append(add_up([jax.device_get(found[:2])]))
    (total, count), (other, _) = totals
    assert count == 11
    assert total.sums["confusion"].shape == (CLASSES, CLASSES)
    pixels = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]
    expected = pixels * np.bincount(rows["label"][:11], minlength=CLASSES)
    np.testing.assert_array_equal(total.sums["confusion"].sum(1), expected)
    assert total.records["best"].shape == (11, 3)
    np.testing.assert_array_equal(other.sums["confusion"], total.sums["confusion"])
    np.testing.assert_allclose(other.records["best"], total.records["best"], rtol=1e-5, atol=1e-7)


def test_a_batch_unlike_the_tasks_example_is_refused(config):
    rows = batch()
    rows["label"] = rows["label"].astype(np.float32)
    with pytest.raises(AssertionError, match="float32"):
        Run(config).take(rows)
