"""A config becomes everything that a run needs, once."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flaxattn.data import (
    Batch,
    Source,
    eval_batches,
    eval_transform,
    open_source,
    require_same_classes,
    train_batches,
    train_transform,
)
from flaxattn.errors import InputError, unknown
from flaxattn.layers.precision import at_least_float32
from flaxattn.tasks import Classification, Detection, MultiLabel, Segmentation, Task
from flaxattn.tasks.task import Measured, abstract_batch, add_up
from flaxattn.train.config import require_valid
from flaxattn.train.phases import Phase, make_phases
from flaxattn.train.pictures import draw
from flaxattn.train.sharding import make_mesh, replicated, require_divisible, to_devices
from flaxattn.train.start import full_model, starting_variables
from flaxattn.train.state import TrainState
from flaxattn.train.step import (
    EvalStep,
    Sums,
    TrainStep,
    empty_sums,
    make_eval_step,
    make_train_step,
)

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "detection": Detection,
    "segmentation": Segmentation,
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, on a mesh of devices; no array of it exists yet.

    Fields:
        train_source, eval_source: the examples.
        train_batches: `train_batches(start_step=...)` is this process's share of the training.
        eval_batches: `eval_batches()` is its share of one evaluation.
        task, model, phases: what is trained, and how.
        abstract_states: the state without values, in each phase.
        start: makes the model's variables at step 0, on the host: of the seed, or of the weights in
            `config.init`. Raises InputError for weights that do not fit.
        new_state: makes the state at step 0 of these variables.
        new_phases: make the state of each phase of the state that the one before left.
        new_sums: makes zeros for what training adds up between two log lines.
        train_steps, eval_step: the compiled programs (`make_train_step`, `make_eval_step`).
        steps_per_epoch, total_steps: an epoch is a whole number of steps, and the rest of a pass
            opens the next one.
    """

    config: ConfigDict
    mesh: Mesh
    train_source: Source
    eval_source: Source
    train_batches: Callable[..., Generator[Batch, None, None]]
    eval_batches: Callable[[], Generator[Batch, None, None]]
    task: Task
    model: nn.Module
    phases: tuple[Phase, ...]
    abstract_states: tuple[TrainState, ...]
    start: Callable[[], Mapping[str, Any]]
    new_state: Callable[[Mapping[str, Any]], TrainState]
    new_phases: tuple[Callable[[TrainState], TrainState], ...]
    new_sums: Callable[[], Sums]
    train_steps: tuple[TrainStep, ...]
    eval_step: EvalStep
    steps_per_epoch: int
    total_steps: int

    def phase_of(self, step: int) -> int:
        """Which phase the step belongs to; step 0 to the first."""
        return sum(step > phase.last_step for phase in self.phases)

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], np.ndarray | None]:
        """The task's metrics on the test examples: each counts once, padding never.

        And the first of them drawn, uint8 (H, W, 3), as many as `config.pictures`; None for 0 and
        on processes that have none of them.
        """
        variables = state.variables()
        measured: list[tuple[Measured, Any]] = []
        sheet = None
        with jax.transfer_guard("disallow"):
            for batch in self.eval_batches():
                found = self.eval_step(variables, to_devices(self.mesh, batch))
                if not measured and self.config.pictures and jax.process_index() == 0:
                    predictions = jax.device_get(found.predictions)
                    sheet = draw(self.task, batch, predictions, self.eval_source, self.config.data)
                measured.append((found.measured, found.mask))
            total, count = add_up(jax.device_get(measured))
        return self.task.finish(total, count) | {"count": count}, sheet


def make_experiment(
    config: ConfigDict, *, devices: Sequence[jax.Device] | None = None
) -> Experiment:
    """The experiment of a config (`flaxattn.train.config.base_config`) on `devices`, or on all.

    Raises InputError for what cannot be run. Nothing is written.
    """
    require_valid(config)
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS)
    make_task = TASKS[config.task]
    mesh = make_mesh(devices)
    require_divisible(config.batch_size, mesh, accumulation=config.optim.accumulation)
    require_divisible(config.eval_batch_size, mesh, name="eval_batch_size")

    train_source, eval_source = (
        open_source(config.data, split, annotation=make_task.annotation)
        for split in (config.data.train_split, config.data.eval_split)
    )
    require_same_classes(train_source, eval_source)
    steps_per_epoch = len(train_source) // config.batch_size
    if not steps_per_epoch:
        raise InputError(
            f"batch_size={config.batch_size} is more than the {len(train_source)} training "
            f"examples: use at most {len(train_source)}."
        )
    share = {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "workers": config.data.workers,
    }

    dtype = _dtype(config)
    task = make_task.of(config, num_classes=train_source.num_classes)
    base = task.model(config.model, dtype=dtype, param_dtype=at_least_float32(dtype))
    model = full_model(base, config.init)
    total_steps = max(round(config.epochs * steps_per_epoch), 1)
    inputs = task.inputs(abstract_batch(task, 1))
    phases = make_phases(
        config, model, inputs, steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )
    new_states = [
        functools.partial(
            TrainState.starting,
            optimizer=phase.optimizer,
            ema=bool(config.ema_decay),
            trainable=phase.trainable,
        )
        for phase in phases
    ]
    variables = jax.eval_shape(model.init, jax.random.key(config.seed), *inputs)
    return Experiment(
        config=config,
        mesh=mesh,
        train_source=train_source,
        eval_source=eval_source,
        train_batches=functools.partial(
            train_batches,
            train_source,
            train_transform(config.data, annotation=make_task.annotation),
            batch_size=config.batch_size,
            seed=config.seed,
            **share,
        ),
        eval_batches=functools.partial(
            eval_batches,
            eval_source,
            eval_transform(config.data, annotation=make_task.annotation),
            batch_size=config.eval_batch_size,
            **share,
        ),
        task=task,
        model=model,
        phases=phases,
        abstract_states=tuple(jax.eval_shape(new_state, variables) for new_state in new_states),
        start=functools.partial(
            starting_variables, base, config.init, inputs=inputs, seed=config.seed
        ),
        new_state=jax.jit(new_states[0], out_shardings=replicated(mesh)),
        new_phases=tuple(
            jax.jit(phase.begun, donate_argnums=0, out_shardings=replicated(mesh))
            for phase in phases
        ),
        new_sums=jax.jit(lambda: empty_sums(task, config), out_shardings=replicated(mesh)),
        train_steps=tuple(make_train_step(model, task, phase, mesh, config) for phase in phases),
        eval_step=make_eval_step(model, task, mesh, pictures=config.pictures),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _dtype(config: ConfigDict) -> jnp.dtype:
    names = ("float32", "bfloat16", "float64")
    if config.dtype not in names:
        raise unknown("dtype", config.dtype, names)
    if config.dtype == "float64" and not jax.config.values["jax_enable_x64"]:
        raise InputError("dtype='float64' needs 64-bit JAX: set JAX_ENABLE_X64=1.")
    return jnp.dtype(config.dtype)
