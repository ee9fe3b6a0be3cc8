"""Training steps of whole networks on a GPU beside PyTorch's: python -m benchmarks.gpu_time

Images/s of a ResNet-50 with and without attention, forward, backward and SGD, in bfloat16 with
float32 parameters: ours compiled by XLA, timm's in channels-last under autocast, eager and by
torch.compile. All take turns in one process. A row has the median of its turns and their spread.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # the rest is torch's

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from flaxattn import create_model
from tests.torch_reference.torchvision_shim import timm

NETWORKS = {"none": None, "se": "se", "eca": "eca", "cbam": "cbam"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in each turn")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too")
    options = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}")
    print(f"ResNet-50, {options.batch} images of {options.size} pixels, bfloat16, images/s")
    print("\n| attention | by | median | range |\n|---|---|---:|---|", flush=True)
    for name in options.only:
        steps = {"flaxattn": ours(name, options), "timm, eager": theirs(name, options)}
        if options.compiled:
            steps["timm, torch.compile"] = theirs(name, options, compiled=True)
        for step in steps.values():  # compile, and warm up
            step(3)
        found: dict[str, list[float]] = {by: [] for by in steps}
        for _ in range(options.turns):
            for by, step in steps.items():
                began = time.perf_counter()
                step(options.steps)
                seconds = (time.perf_counter() - began) / options.steps
                found[by].append(options.batch / seconds)
        for by, rates in found.items():
            spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
            print(f"| {name} | {by} | {statistics.median(rates):,.0f} | {spread} |", flush=True)


def data(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, options.size, options.size, 3)).astype(np.float32)
    return images, rng.integers(0, 1000, options.batch)


def ours(name: str, options: argparse.Namespace) -> Callable[[int], None]:
    """Takes so many steps, and waits for the last."""
    attention = None if NETWORKS[name] is None else {"name": NETWORKS[name]}
    model = create_model("resnet50", attention=attention, dtype=jnp.bfloat16)
    images, labels = map(jnp.asarray, data(options))
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def start():
        variables = model.init(jax.random.key(0), images[:1])
        params = variables["params"]
        return params, variables["batch_stats"], optimizer.init(params)

    def loss(params, statistics, images, labels):
        variables = {"params": params, "batch_stats": statistics}
        logits, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), moved["batch_stats"]

    @jax.jit(donate_argnums=0)
    def step(state, images, labels):
        params, statistics, moments = state
        gradients, statistics = jax.grad(loss, has_aux=True)(params, statistics, images, labels)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), statistics, moments

    state = start()

    def take(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state = step(state, images, labels)
        jax.block_until_ready(state)

    return take


def theirs(
    name: str, options: argparse.Namespace, *, compiled: bool = False
) -> Callable[[int], None]:
    """The same by timm."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block = {} if NETWORKS[name] is None else {"block_args": {"attn_layer": NETWORKS[name]}}
    model = timm.create_model("resnet50", **block).to(device, memory_format=torch.channels_last)
    images, labels = data(options)
    x = torch.tensor(images.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    y = torch.tensor(labels).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    forward = torch.compile(model) if compiled else model

    def take(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return take


if __name__ == "__main__":
    main()
