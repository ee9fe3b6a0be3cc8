"""What the library costs on a TPU, as the TPU's compiler counts it: python -m benchmarks.tpu

No TPU is needed, only its compiler: pip install "flaxattn[tpu-check]". Each row is compiled in a
process of its own, for one chip (a layer) or for the whole slice (a training step).

    python -m benchmarks.tpu layers                         every mechanism, beside a plain writing
    python -m benchmarks.tpu layers --only se cbam          some of them
    python -m benchmarks.tpu networks --only resnet50       training steps
    python -m benchmarks.tpu layers --write                 the figures become the budget

Bytes are in multiples of the least that must move, the map twice, its answer, and the gradients of
both; temporaries in multiples of the map.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from benchmarks.plain import PLAIN
from flaxattn import ATTENTION, create_attention, create_model
from flaxattn.errors import InputError
from flaxattn.inspect.compiled import Counts, count, tpu_devices
from flaxattn.train.sharding import make_mesh

BUDGET = Path(__file__).with_name("tpu_budget.json")
TOPOLOGY = "v5e:2x2"
# No chip is used, so several processes may load the compiler at once.
COMPILE_ONLY = {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# Of a map early in a ResNet-50 and of one late in it.
SIZES = ("32x56x56x256", "32x14x14x1024")
# These hold a weight for each pair of positions: an early map is none of theirs.
LATE_ONLY = ("botnet", "generalized", "halo", "lambda", "multi_head", "psanet", "window")
# Maps that its blocks of 8x8 positions divide.
OWN_SIZES = {"halo": ("32x16x16x1024",)}
# Name, then the attention of the network, or none, and images a chip.
NETWORKS = ("resnet50,none,256", "resnet50,se,256", "resnet50,eca,256", "resnet50,cbam,256")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("layers", "networks"))
    parser.add_argument("--only", nargs="+", help="names of mechanisms or networks")
    parser.add_argument("--size", nargs="+", default=SIZES, help="maps, as NxHxWxC")
    parser.add_argument("--jobs", type=int, default=1, help="compilations side by side")
    parser.add_argument("--seconds", type=int, default=1800, help="the longest compilation")
    parser.add_argument("--write", action="store_true", help="into the budget")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.what, options.row, plain=options.plain)))
        return
    os.environ |= COMPILE_ONLY
    try:
        tpu_devices(TOPOLOGY)
    except InputError as error:
        raise SystemExit(str(error)) from error
    if options.what == "layers":
        rows = list(layer_rows(options.only, options.size))
    else:
        rows = list(network_rows(options.only))
    print(f"libtpu {version('libtpu')}, jax {version('jax')}, {TOPOLOGY}\n")
    show = show_layer if options.what == "layers" else show_network
    print(inspect.cleandoc(show.__doc__ or ""))
    pool = ThreadPoolExecutor(options.jobs)
    try:
        for row, pair in zip(rows, pool.map(lambda row: both(options, row), rows), strict=True):
            print(show(row, *pair), flush=True)
            if options.write:
                write({f"{options.what} {row}": pair[0]})
    finally:
        pool.shutdown(cancel_futures=True)


def layer_rows(only: Iterable[str] | None, sizes: Sequence[str] = SIZES) -> Iterator[str]:
    for name in only or sorted(ATTENTION):
        for size in OWN_SIZES.get(name, sizes):
            if size != SIZES[0] or name not in LATE_ONLY:
                yield f"{name},{size}"


def network_rows(only: Iterable[str] | None) -> Iterator[str]:
    for row in NETWORKS:
        if only is None or row in only or row.split(",")[0] in only:
            yield row


def both(options: argparse.Namespace, row: str) -> tuple[Any, Any]:
    """The counts of ours and of the plain writing, None where there is none or time ran out."""
    ours = in_process(options.what, row, options.seconds)
    if options.what == "networks":
        return ours, None
    known = row.split(",")[0] in PLAIN
    return ours, in_process(options.what, row, options.seconds, "--plain") if known else None


def in_process(what: str, row: str, seconds: int, *flags: str) -> dict[str, Any] | None:
    """`measure` in a process of its own, which can be stopped."""
    command = [sys.executable, "-m", "benchmarks.tpu", what, "--row", row, *flags]
    environment = os.environ | COMPILE_ONLY
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"{row} did not compile:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(what: str, row: str, *, plain: bool = False) -> dict[str, Any]:
    return (layer_counts(row, plain=plain) if what == "layers" else network_counts(row))._asdict()


def layer_counts(row: str, *, plain: bool = False) -> Counts:
    """Of `layer_program` on one chip."""
    chip = SingleDeviceSharding(tpu_devices(TOPOLOGY)[0])
    function, arguments = layer_program(row, plain=plain)
    return count(function, *placed(arguments, chip))


def layer_program(row: str, *, plain: bool = False) -> tuple[Callable[..., Any], Any]:
    """A layer's answer in train mode and all its gradients, in bfloat16, and its arguments."""
    name, size = row.split(",")
    shape = tuple(map(int, size.split("x")))
    layer = mechanism(name, shape[-1])
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    params, stats = variables.pop("params", {}), variables
    apply: Callable[..., Any] = train_mode(layer)
    if plain:

        def apply(params, _, x):
            return PLAIN[name](params, x), None

    def forward_and_gradients(params, stats, x, dy):
        y, pullback, moved = jax.vjp(lambda p, x: apply(p, stats, x), params, x, has_aux=True)
        return y, moved, pullback(dy)

    y, _ = jax.eval_shape(apply, params, stats, x)
    return forward_and_gradients, (params, stats, x, y)


def mechanism(name: str, features: int) -> nn.Module:
    """The layer with its defaults, for maps of so many channels."""
    created: Any = ATTENTION[name]
    layer = getattr(created, "__self__", created)
    takes_features = layer.role in ("convolution", "head")
    return create_attention(name, **{"features": features} if takes_features else {})


def train_mode(layer: nn.Module) -> Callable[..., Any]:
    """`apply(params, other variables, x)` -> y and the moved statistics."""

    def apply(params, stats, x):
        return layer.apply({"params": params, **stats}, x, train=True, mutable=["batch_stats"])

    return apply


def network_counts(row: str) -> Counts:
    """A step of SGD with momentum in bfloat16, its batch over the chips of the slice."""
    name, attention, images = row.split(",")
    model = create_model(
        name, dtype=jnp.bfloat16, **{} if attention == "none" else {"attention": attention}
    )
    mesh = make_mesh(tpu_devices(TOPOLOGY))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_example = NamedSharding(mesh, PartitionSpec("data"))
    batch = int(images) * mesh.size
    optimizer = optax.sgd(0.1, momentum=0.9)

    def init(key):
        variables = model.init(key, jnp.zeros((2, 224, 224, 3), jnp.bfloat16))
        return variables, optimizer.init(variables["params"])

    def step(variables, opt_state, images, labels):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        (value, updates), found = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        changes, opt_state = optimizer.update(found, opt_state)
        params = optax.apply_updates(variables["params"], changes)
        return {"params": params, **updates}, opt_state, value

    variables, opt_state = jax.eval_shape(init, jax.random.key(0))
    return count(
        step,
        placed(variables, everywhere),
        placed(opt_state, everywhere),
        jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.bfloat16, sharding=by_example),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=by_example),
        donate_argnums=(0, 1),
    )


def placed(tree: Any, sharding: Sharding) -> Any:
    """The abstract arrays of `tree` as they lie on devices."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def show_layer(row: str, ours: Any, plain: Any) -> str:
    """| layer, map | bytes | plain | ours / plain | temporaries | plain | seconds |
    |---|---|---|---|---|---|---|"""
    name, size = row.split(",")
    if ours is None:
        return f"| {name}, {size} | too long to compile | | | | | |"
    n, h, w, c = map(int, size.split("x"))
    a_map = 2 * n * h * w * c
    cells = [f"{name}, {size}", f"{ours['bytes'] / (5 * a_map):.2f}"]
    if plain:
        cells += [f"{plain['bytes'] / (5 * a_map):.2f}", f"{ours['bytes'] / plain['bytes']:.2f}"]
    else:
        cells += ["", ""]
    cells += [
        f"{counted['temporaries'] / a_map:.1f}" if counted else "" for counted in (ours, plain)
    ]
    return f"| {' | '.join([*cells, format(ours['seconds'], '.0f')])} |"


def show_network(row: str, ours: Any, _: Any) -> str:
    """| network, attention, images a chip | GB | TFLOP | GB temporaries | collectives | seconds |
    |---|---|---|---|---|---|"""
    if ours is None:
        return f"| {row} | too long to compile | | | | |"
    kinds = ", ".join(f"{n} {kind}" for kind, n in ours["collectives"].items())
    return (
        f"| {row.replace(',', ', ')} | {ours['bytes'] / 1e9:.1f} | {ours['flops'] / 1e12:.2f} | "
        f"{ours['temporaries'] / 1e9:.2f} | {kinds} | {ours['seconds']:.0f} |"
    )


def write(found: dict[str, Any]) -> None:
    """Puts new figures into the budget, without the seconds, which are no two times the same."""
    budget = json.loads(BUDGET.read_text())["counts"] if BUDGET.exists() else {}
    for row, counted in found.items():
        if counted is not None:
            budget[row] = {key: value for key, value in counted.items() if key != "seconds"}
    lines = [f"    {json.dumps(row)}: {json.dumps(budget[row])}" for row in sorted(budget)]
    text = ",\n".join(lines)
    BUDGET.write_text(f'{{\n  "libtpu": "{version("libtpu")}",\n  "counts": {{\n{text}\n  }}\n}}\n')


if __name__ == "__main__":
    main()
