"""Segmentation networks beside torch's: outputs, gradients and statistics in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.attention import parity
from tests.models.networks import load_and_back

BOUND = 1e-9


def calibrated(network, size=(65, 49)):
    """`network` in float64 with random weights, and the running statistics of a random batch."""
    rng = np.random.default_rng(0)
    parity.randomise(network, rng)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.double().train()(torch.tensor(rng.normal(size=(2, 3, *size))))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def images(size, batch=2):
    return np.random.default_rng(1).normal(size=(batch, *size, 3))


def to_torch(x, **fields):
    return torch.tensor(parity.to_channels_first(x), **fields)


def check_eval(model, network, size, *, naming="torchvision", batch=2):
    """All outputs in eval mode; all weights go there and back."""
    x = images(size, batch)
    with jax.enable_x64(True), torch.no_grad():
        model = model.clone(param_dtype=jnp.float64)
        variables = load_and_back(model, network, x.shape, naming)
        ours = jax.jit(functools.partial(model.apply, aux=True))(variables, x)
        theirs = network(to_torch(x))
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            assert ours[name].dtype == np.float64
            close(ours[name], expected.numpy(), name)


def close(ours, theirs, name):
    error = parity.difference(ours, parity.to_channels_last(theirs))
    assert error <= BOUND, f"{name} differ by {error:.1e}"
