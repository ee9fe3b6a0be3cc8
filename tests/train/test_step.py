import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from flaxattn.tasks import Classification
from flaxattn.train import sharding
from flaxattn.train.config import base_config
from flaxattn.train.state import TrainState, initialiser
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
    return config


def batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, *IMAGE_SHAPE)).astype(np.float32),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
    }


class Run:
    """A step with its state, on `devices` devices."""

    def __init__(self, config, model=None, devices=1, rate=0.1):
        model = model or SmallNet()
        self.mesh = sharding.make_mesh(jax.devices()[:devices])
        self.task = Classification(CLASSES)
        optimizer = optax.sgd(rate)
        schedule = optax.constant_schedule(rate)
        self.step = make_train_step(model, self.task, optimizer, schedule, self.mesh, config)
        init = initialiser(model, optimizer, IMAGE_SHAPE, ema=bool(config.ema_decay))
        place = functools.partial(jax.jit, out_shardings=sharding.replicated(self.mesh))
        self.state: TrainState = place(init)(jax.random.key(0))
        self.sums = place(lambda: empty_sums(config))()

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
    sums = jax.device_get(step(run.state.variables(), sharding.to_devices(run.mesh, rows)))
    logits = SmallNet().apply(jax.device_get(run.state.variables()), rows["image"][:11])
    labels = rows["label"][:11]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert sums["count"] == 11
    assert sums["loss"] == pytest.approx(float(losses.sum()), rel=1e-5)
    assert sums["accuracy"] == float(jnp.sum(logits.argmax(-1) == labels))
