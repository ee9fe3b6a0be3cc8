import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from ml_collections import ConfigDict

from flaxattn.errors import InputError
from flaxattn.train.config import base_config
from flaxattn.train.optimizer import kernels, learning_rate, make_optimizer


@pytest.fixture
def optim() -> ConfigDict:
    return base_config().optim


def test_schedule_rises_to_its_peak_and_falls_to_zero(optim):
    optim.learning_rate, optim.warmup_epochs = 0.4, 2.0
    schedule = learning_rate(optim, steps_per_epoch=10, total_steps=100)
    assert schedule(0) == 0
    assert float(schedule(10)) == pytest.approx(0.2)
    assert float(schedule(20)) == pytest.approx(0.4)
    assert float(schedule(60)) == pytest.approx(0.2)
    assert float(schedule(100)) == pytest.approx(0, abs=1e-7)


def test_without_warmup_it_starts_at_its_peak(optim):
    optim.warmup_epochs = 0.0
    assert learning_rate(optim, steps_per_epoch=10, total_steps=100)(0) == pytest.approx(0.1)


def test_without_decay_it_stays(optim):
    optim.decay, optim.warmup_epochs = "none", 1.0
    schedule = learning_rate(optim, steps_per_epoch=10, total_steps=100, peak=0.4)
    assert [float(schedule(step)) for step in (0, 5, 10, 100)] == pytest.approx([0, 0.2, 0.4, 0.4])
    optim.decay = "linear"
    with pytest.raises(InputError, match=r"'linear': .* Known: cosine, none, poly"):
        learning_rate(optim, steps_per_epoch=10, total_steps=100)


def test_polynomial_decay(optim):
    """Of what follows the warm-up, as torch's PolynomialLR has it."""
    optim.decay, optim.warmup_epochs = "poly", 1.0
    schedule = learning_rate(optim, steps_per_epoch=10, total_steps=60, peak=0.4)
    parameter = torch.nn.Parameter(torch.zeros(()))
    theirs = torch.optim.SGD([parameter], lr=0.4)
    decay = torch.optim.lr_scheduler.PolynomialLR(theirs, total_iters=50, power=0.9)
    rates = []
    for _ in range(51):
        rates += decay.get_last_lr()
        theirs.step()
        decay.step()
    assert [float(schedule(step)) for step in range(10, 61)] == pytest.approx(rates, abs=1e-7)
    assert float(schedule(5)) == pytest.approx(0.2)


def test_warmup_longer_than_the_run_is_refused(optim):
    with pytest.raises(
        InputError, match=r"warmup_epochs=5.0 is the whole run or phase of 40 steps"
    ):
        learning_rate(optim, steps_per_epoch=10, total_steps=40)


def test_unknown_optimizer_names_the_nearest(optim):
    optim.name = "adam"
    with pytest.raises(InputError, match=r"unknown optimizer 'adam': did you mean adamw"):
        make_optimizer(optim, optax.constant_schedule(0.1))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_follows_torch(optim, name):
    """Ten steps with momentum, clipping, and decay of the kernel alone."""
    optim.update(name=name, nesterov=True, weight_decay=0.05, clip_norm=2.0)
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    gradients = [{k: 3 * rng.normal(size=v.shape) for k, v in start.items()} for _ in range(10)]

    tensors = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": 0.05},
        {"params": [tensors["bias"]], "weight_decay": 0.0},
    ]
    theirs = (
        torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(groups, lr=0.1)
    )
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours = make_optimizer(optim, optax.constant_schedule(0.1))
        params = {"layer": jax.tree.map(jnp.asarray, start)}
        state = ours.init(params)
        for gradient in gradients:
            for key, tensor in tensors.items():
                tensor.grad = torch.tensor(gradient[key])
            torch.nn.utils.clip_grad_norm_(list(tensors.values()), 2.0)
            theirs.step()
            updates, state = ours.update({"layer": gradient}, state, params)
            params = optax.apply_updates(params, updates)
    for key, tensor in tensors.items():
        # torch divides by norm + 1e-6 when it clips, optax by the norm.
        np.testing.assert_allclose(params["layer"][key], tensor.detach().numpy(), rtol=3e-6)


def test_only_kernels_decay():
    leaves = ("kernel", "bias", "scale", "gamma")
    mask = kernels({"layer": dict.fromkeys(leaves, jnp.zeros(()))})
    assert mask["layer"] == {"kernel": True, "bias": False, "scale": False, "gamma": False}


def test_without_a_gradient_only_kernels_move(optim):
    optim.update(weight_decay=0.5, momentum=0.0)
    optimizer = make_optimizer(optim, optax.constant_schedule(0.1))
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(3)}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    assert not updates["bias"].any()
