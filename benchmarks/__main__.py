"""Side-by-side timings against PyTorch on this machine: make bench

Each row times the same work in both frameworks, turn by turn in one process, so that a machine
whose speed drifts slows both. It prints medians with their spread, and the ratio of the medians:
torch's time over ours, above 1 where we are faster. Figures from a shared machine are noisy: quote
the ratio with its machine, never a single time.
"""

import argparse
import functools
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.pairs import LAYERS, MODELS
from flaxattn import create_model
from tests.torch_reference.torchvision_shim import timm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="timed turns of each")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.device_kind}, torch {torch.__version__} on")
    print(f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}")
    print("\n| work | ours, ms | torch, ms | torch / ours |\n|---|---|---|---|")
    for name, pair in rows():
        if options.only in name:
            ours, theirs = pair()
            print(row(name, *interleaved(ours, theirs, repeats=options.repeats)), flush=True)


def rows():
    """Each row's name, and what makes its two pieces of work."""
    for name, (layer, reference) in LAYERS.items():
        yield f"{name}, 8x28x28x128", functools.partial(layer_pair, layer, reference)
    for name in MODELS:
        yield f"{name}, training step, 8x112x112", functools.partial(step_pair, name)


def layer_pair(layer, reference):
    """A layer's answer and its gradients with respect to input and parameters."""
    x, cotangent = np.random.default_rng(0).normal(size=(2, 8, 28, 28, 128)).astype(np.float32)
    module, theirs = layer(), reference(128).train()
    params = module.init(jax.random.key(0), x)["params"]

    @jax.jit
    def gradients(params, x, cotangent):
        answer, pullback = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
        return answer, pullback(cotangent)

    x_torch, cotangent_torch = nchw(x).requires_grad_(), nchw(cotangent)

    def backward():
        theirs.zero_grad()
        x_torch.grad = None
        theirs(x_torch).backward(cotangent_torch)

    x, cotangent = jnp.asarray(x), jnp.asarray(cotangent)
    return lambda: jax.block_until_ready(gradients(params, x, cotangent)), backward


def step_pair(name):
    """A step of SGD with momentum on a network of timm."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 112, 112, 3)).astype(np.float32)
    labels = rng.integers(0, 1000, 8)
    model, optimizer = create_model(name), optax.sgd(1e-3, momentum=0.9)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    state = [variables, optimizer.init(variables["params"])]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables, opt_state, images, labels):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        found, statistics_ = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(found, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **statistics_}, opt_state

    def ours():
        state[:] = jax.block_until_ready(step(*state, images, labels))

    theirs = timm.create_model(name).train().to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(theirs.parameters(), 1e-3, momentum=0.9)
    images_torch, labels_torch = nchw(images), torch.tensor(labels)

    def torch_step():
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(theirs(images_torch), labels_torch).backward()
        sgd.step()

    return ours, torch_step


def nchw(x):
    tensor = torch.tensor(x.transpose(0, 3, 1, 2))
    return tensor.contiguous(memory_format=torch.channels_last)


def interleaved(ours, theirs, *, repeats):
    """Seconds of each, by turns, after one turn that compiles and warms up."""
    times = ([], [])
    for turn in range(repeats + 1):
        for work, seconds in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                seconds.append(time.perf_counter() - start)
    return times


def row(name, ours, theirs):
    def cell(seconds):
        low, high = 1e3 * min(seconds), 1e3 * max(seconds)
        return f"{1e3 * statistics.median(seconds):.1f} ({low:.1f} to {high:.1f})"

    ratio = statistics.median(theirs) / statistics.median(ours)
    return f"| {name} | {cell(ours)} | {cell(theirs)} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
