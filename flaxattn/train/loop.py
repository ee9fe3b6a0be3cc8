"""A run from its config to its result, as one story."""

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flaxattn.data import (
    Batch,
    eval_batches,
    eval_transform,
    open_source,
    require_same_classes,
    train_batches,
    train_transform,
)
from flaxattn.errors import InputError, unknown
from flaxattn.layers.precision import at_least_float32
from flaxattn.models import create_model
from flaxattn.tasks import Classification
from flaxattn.train import workdir as workdirs
from flaxattn.train.checkpoint import Checkpoints
from flaxattn.train.config import require_valid
from flaxattn.train.optimizer import learning_rate, make_optimizer
from flaxattn.train.profile import Profiler
from flaxattn.train.report import Report, log
from flaxattn.train.sharding import (
    describe_devices,
    make_mesh,
    replicated,
    require_divisible,
    to_devices,
)
from flaxattn.train.state import TrainState, initialiser
from flaxattn.train.step import Sums, empty_sums, make_eval_step, make_train_step


class Diverged(RuntimeError):
    """The loss, its gradient or the parameters are no longer finite numbers."""


class Preempted(RuntimeError):
    """The run was told to stop; its state is saved."""


def run(
    config: ConfigDict, workdir: str | Path, *, devices: Sequence[jax.Device] | None = None
) -> dict[str, float]:
    """Trains what `config` describes, from wherever `workdir` says it was left, and evaluates it.

    Args:
        config: the fields of `flaxattn.train.config.base_config`.
        workdir: holds the run's checkpoints, events, history, curves and result. A run that is
            complete there is not trained again.
        devices: to train on; all of all processes by default.

    Returns the test metrics: means over the examples, and their `count`.

    Raises InputError for what cannot be run, Diverged at a loss that is not a number, Preempted on
    SIGTERM or Ctrl-C after saving.
    """
    workdir = Path(workdir)
    leader = jax.process_index() == 0
    require_valid(config)
    workdirs.require_same(workdir, config)
    result_path = workdir / "result.json"
    if result_path.exists():
        log.info("the run in %s is complete; this is its result", workdir)
        return json.loads(result_path.read_text())

    mesh = make_mesh(devices)
    require_divisible(config.batch_size, mesh, accumulation=config.optim.accumulation)
    require_divisible(config.eval_batch_size, mesh, name="eval_batch_size")
    data = Data(config)
    total_steps = max(round(config.epochs * data.steps_per_epoch), 1)
    eval_every = max(round(config.eval_every * data.steps_per_epoch), 1)

    dtype = _dtype(config)
    model = create_model(
        num_classes=data.num_classes,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        **config.model,
    )
    task = Classification(data.num_classes, label_smoothing=config.label_smoothing)
    schedule = learning_rate(
        config.optim, steps_per_epoch=data.steps_per_epoch, total_steps=total_steps
    )
    optimizer = make_optimizer(config.optim, schedule)
    train_step = make_train_step(model, task, optimizer, schedule, mesh, config)
    eval_step = make_eval_step(model, task, mesh)
    new_sums = jax.jit(lambda: empty_sums(config), out_shardings=replicated(mesh))
    init = initialiser(model, optimizer, data.image_shape, ema=bool(config.ema_decay))
    abstract_state = jax.eval_shape(init, jax.random.key(config.seed))

    # All that can be refused has been; only now is the directory taken.
    if leader:
        workdirs.claim(workdir, config)
    with contextlib.ExitStack() as stack:

        def closed_at_the_end(resource):
            return stack.enter_context(contextlib.closing(resource))

        checkpoints = closed_at_the_end(
            Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        )
        if checkpoints.latest_step() is None:
            state = jax.jit(init, out_shardings=replicated(mesh))(jax.random.key(config.seed))
        else:
            state = checkpoints.restore(abstract_state, replicated(mesh))
        start_step = int(state.step)
        _announce(config, data, state, mesh, total_steps)
        report = closed_at_the_end(
            Report(
                workdir,
                start_step=start_step,
                total_steps=total_steps,
                steps_per_epoch=data.steps_per_epoch,
                batch_size=config.batch_size,
            )
        )
        profiler = closed_at_the_end(Profiler(workdir / "profile", config.profile))
        batches = closed_at_the_end(data.training(start_step))
        told_to_stop = stack.enter_context(_told_to_stop())

        sums = new_sums()
        for step in range(start_step + 1, total_steps + 1):
            try:
                batch = next(batches)
            except InputError:
                # A broken image costs no step. Of several processes one alone cannot save.
                if jax.process_count() == 1 and step > start_step + 1:
                    _require_finite(sums, checkpoints)
                    checkpoints.save(step - 1, state)
                raise
            profiler.before(step)
            # Nothing crosses between host and device here but the batch, and nobody waits.
            with jax.transfer_guard("disallow"):
                state, sums = train_step(state, sums, to_devices(mesh, batch))
            profiler.after(step, sums)
            report.advance(step, sums)

            stops = told_to_stop.is_set() or checkpoints.preempted(step)
            saves = step % config.checkpoint_every == 0 or step == total_steps or stops
            if step % config.log_every == 0 or saves:
                _require_finite(sums, checkpoints)
                report.train(step, _means(sums))
                sums = new_sums()
            # There may be no time left for an evaluation; the last step has its own below.
            if step % eval_every == 0 and step < total_steps and not stops:
                report.evaluation(step, evaluate(eval_step, state, data.evaluation(), mesh))
            if saves:
                checkpoints.save(step, state)
            if stops:
                raise Preempted(
                    f"told to stop after step {step} of {total_steps}: all is saved in {workdir}; "
                    f"the same command goes on from there."
                )
        result = evaluate(eval_step, state, data.evaluation(), mesh)
        report.evaluation(total_steps, result)
    if leader:
        workdirs.write_json(result_path, result)
    return result


def evaluate(
    eval_step: Callable[..., Sums], state: TrainState, batches: Iterator, mesh: Mesh
) -> dict[str, float]:
    """Exact means of the task's metrics: each example counts once, padding never."""
    variables = state.variables()
    with jax.transfer_guard("disallow"):
        sums = [eval_step(variables, to_devices(mesh, batch)) for batch in batches]
        fetched = jax.device_get(sums)
    totals = {name: math.fsum(batch[name] for batch in fetched) for name in fetched[0]}
    count = totals.pop("count")
    return {name: total / count for name, total in totals.items()} | {"count": int(count)}


class Data:
    """The training and evaluation sources of a config, and their batches for this process."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self.train = open_source(config.data, config.data.train_split)
        self.eval = open_source(config.data, config.data.eval_split)
        self._train_transform = train_transform(config.data)
        self._eval_transform = eval_transform(config.data)
        require_same_classes(self.train, self.eval)
        self.num_classes = self.train.num_classes
        self.image_shape = (config.data.image_size, config.data.image_size, config.data.channels)
        # An epoch is a whole number of steps: the rest of a pass opens the next one.
        self.steps_per_epoch = len(self.train) // config.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"batch_size={config.batch_size} is more than the {len(self.train)} training "
                f"examples: use at most {len(self.train)}."
            )

    def training(self, start_step: int) -> Generator[Batch, None, None]:
        return train_batches(
            self.train,
            self._train_transform,
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            start_step=start_step,
            **self._share(),
        )

    def evaluation(self) -> Generator[Batch, None, None]:
        return eval_batches(
            self.eval,
            self._eval_transform,
            batch_size=self._config.eval_batch_size,
            **self._share(),
        )

    def _share(self) -> dict[str, int]:
        return {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "workers": self._config.data.workers,
        }


def _dtype(config: ConfigDict) -> jnp.dtype:
    names = ("float32", "bfloat16", "float64")
    if config.dtype not in names:
        raise unknown("dtype", config.dtype, names)
    if config.dtype == "float64" and not jax.config.values["jax_enable_x64"]:
        raise InputError("dtype='float64' needs 64-bit JAX: set JAX_ENABLE_X64=1.")
    return jnp.dtype(config.dtype)


def _announce(config: ConfigDict, data: Data, state: TrainState, mesh: Mesh, total: int) -> None:
    if jax.process_index() != 0:
        return
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    log.info("devices: %s", describe_devices(list(mesh.devices.flat)))
    log.info("model: %s, %s parameters", config.model.name, f"{parameters:,}")
    log.info(
        "data: %s, %s training and %s test examples in %d classes",
        config.data.name,
        f"{len(data.train):,}",
        f"{len(data.eval):,}",
        data.num_classes,
    )
    start = int(state.step)
    log.info("steps: %d to %d", start, total) if start else log.info("steps: %d", total)


def _means(sums: Sums) -> dict[str, float]:
    """Means over the steps that were added up."""
    fetched = jax.device_get(sums)
    del fetched["first_bad_step"]
    steps = fetched.pop("steps")
    return {name: float(total / steps) for name, total in fetched.items()}


def _require_finite(sums: Sums, checkpoints: Checkpoints) -> None:
    """Diverged if a step that was added up left something that is not finite."""
    if (bad := int(jax.device_get(sums["first_bad_step"]))) < 0:
        return
    newest = checkpoints.latest_step()
    kept = f"step {newest} in {checkpoints.directory}" if newest else "none was saved yet"
    raise Diverged(
        f"the loss, its gradient or the parameters are not finite numbers at step {bad}; the last "
        f"good checkpoint stays ({kept}): in another --workdir, try a lower optim.learning_rate, a "
        f"longer optim.warmup_epochs, or optim.clip_norm."
    )


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second Ctrl-C interrupts at once.

    Several processes agree on SIGTERM through the checkpoints instead.
    """
    told = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield told
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def tell(number, _) -> None:
        told.set()
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, tell)
    try:
        yield told
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
