"""Numerical agreement of a Flax layer with its PyTorch reference; test_parity.py has the cases.

`check` draws every parameter and running statistic at random, compares in eval and in train mode
the answer, the gradients of input and of parameters, and the running statistics after the step;
each error is relative to the largest value that torch has, and goes into the table that pytest
prints at the end and writes to reports/parity.md.

`refused=True` says that both sides refuse this shape in train mode (batch normalisation of one
value per channel), and checks that they do.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import weights
from flaxattn.errors import InputError

FEATURES = 32
MAPS = ((56, 56), (13, 7), (1, 1))
BATCHES = (1, 4)

# DESIGN.md, "Truth": forward, gradient and statistics bounds in float32; all the same in float64.
BOUNDS = {"float32": {"forward": 1e-5, "gradient": 1e-4, "statistics": 1e-5}}
BOUNDS["float64"] = dict.fromkeys(BOUNDS["float32"], 1e-10)


def shapes(maps=MAPS):
    """Inputs (N, H, W, C) of each batch size and map."""
    return [(n, *size, FEATURES) for n in BATCHES for size in maps]


def check(
    record_property,
    rows,
    layer,
    reference,
    *,
    shape,
    dtype,
    naming=None,
    modes=(False, True),
    refused=False,
):
    """Compares in each of `modes` (values of `train`), and enters the errors under all `rows`."""
    rng = np.random.default_rng(0)
    randomise(reference, rng)
    x = rng.normal(size=shape)
    with jax.enable_x64(dtype == "float64"):
        layer = layer.clone(param_dtype=jnp.dtype(dtype))
        for train in modes:
            if train and refused:
                _check_refused(layer, reference, x, shape, dtype, naming)
                continue
            for quantity, error in errors(layer, reference, x, train, dtype, naming).items():
                bound = BOUNDS[dtype][quantity]
                for row in rows:
                    record_property("parity", (row, f"{quantity} {dtype}", error, bound))
                mode = "train" if train else "eval"
                assert error <= bound, f"{rows}: {quantity} in {mode} mode differs by {error:.1e}"


def randomise(module, rng):
    """Random weights of a realistic size, and running statistics that are not the initial ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 4
            parameter.copy_(torch.tensor(rng.normal(size=parameter.shape) / fan_in**0.5))
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.tensor(rng.normal(size=buffer.shape)))
            if key.endswith("running_var"):
                buffer.copy_(torch.tensor(rng.uniform(0.5, 2, size=buffer.shape)))


def errors(layer, reference, x, train, dtype, naming):
    """Largest relative differences: {"forward", "gradient", and "statistics" if there are any}."""
    load = functools.partial(weights.load, layer, input_shape=x.shape, naming=naming)
    reference = reference.to(getattr(torch, dtype)).train(train)
    before = {key: value.detach().numpy().copy() for key, value in reference.state_dict().items()}

    x_torch = torch.tensor(to_nchw(x), dtype=getattr(torch, dtype), requires_grad=True)
    answer = reference(x_torch)
    cotangent = np.random.default_rng(1).normal(size=answer.shape)
    reference.zero_grad()
    answer.backward(torch.tensor(cotangent, dtype=answer.dtype))
    gradients = {key: p.grad.numpy() for key, p in reference.named_parameters()}
    after = {key: value.detach().numpy() for key, value in reference.state_dict().items()}

    variables = jax.tree.map(jnp.asarray, load(before))
    statistics = {k: v for k, v in variables.items() if k != "params"}

    def apply(params, x):
        return layer.apply({"params": params, **statistics}, x, train=train, mutable=[*statistics])

    params = variables.get("params", {})

    @jax.jit
    def step(params, x, cotangent):
        ours, pullback, moved = jax.vjp(apply, params, x, has_aux=True)
        return ours, moved, *pullback(cotangent)

    cotangent = jnp.asarray(to_nhwc(cotangent), dtype)
    ours, moved, params_grad, x_grad = step(params, jnp.asarray(x, dtype), cotangent)

    expected_grad = load(before | gradients).get("params", {})
    largest = max([abs(g).max() for g in jax.tree.leaves(expected_grad)], default=0.0)
    found = {
        "forward": difference(ours, to_nhwc(answer.detach().numpy())),
        "gradient": max(
            difference(x_grad, to_nhwc(x_torch.grad.numpy())),
            # A gradient that is zero but for rounding is measured against the other parameters'.
            *[
                difference(a, b, at_least=0.01 * largest)
                for a, b in zip(
                    jax.tree.leaves(params_grad), jax.tree.leaves(expected_grad), strict=True
                )
            ],
            0.0,
        ),
    }
    if train and statistics:
        expected = {k: v for k, v in load(after).items() if k != "params"}
        found["statistics"] = max(
            difference(a, b)
            for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)
        )
    return found


def difference(ours, theirs, *, at_least=0.0):
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    scale = max(np.abs(theirs).max(), at_least)
    error = np.abs(ours - theirs).max()
    assert np.isfinite(error)
    return float(error / scale) if scale else float(error)


def _check_refused(layer, reference, x, shape, dtype, naming):
    reference = reference.to(getattr(torch, dtype)).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reference(torch.tensor(to_nchw(x), dtype=getattr(torch, dtype)))
    before = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    variables = weights.load(layer, before, shape, naming)
    with pytest.raises(InputError, match="more than one value per channel"):
        layer.apply(variables, jnp.asarray(x, dtype), train=True, mutable=["batch_stats"])


def to_nchw(x):
    return np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2)))


def to_nhwc(x):
    """NCHW maps channels last; anything else as it is."""
    return np.transpose(x, (0, 2, 3, 1)) if x.ndim == 4 else x
