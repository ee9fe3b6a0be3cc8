"""A run from its config to its result, as one story."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from flaxattn.errors import InputError
from flaxattn.train import workdir as workdirs
from flaxattn.train.checkpoint import Checkpoints
from flaxattn.train.experiment import Experiment, make_experiment
from flaxattn.train.phases import describe_trainable
from flaxattn.train.profile import Profiler
from flaxattn.train.published import publish
from flaxattn.train.report import Report, log
from flaxattn.train.sharding import describe_devices, replicated, to_devices
from flaxattn.train.state import TrainState
from flaxattn.train.step import Sums


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
        workdir: holds the run's checkpoints, events, history, curves, pictures and result. A run
            that is complete there is not trained again.
        devices: to train on; all of all processes by default.

    Returns the test metrics, and the `count` of the examples.

    Raises InputError for what cannot be run, Diverged at a loss that is not a number, Preempted on
    SIGTERM or Ctrl-C after saving.
    """
    workdir = Path(workdir)
    leader = jax.process_index() == 0
    workdirs.require_same(workdir, config)
    result_path = workdir / "result.json"
    if result_path.exists():
        log.info("the run in %s is complete; this is its result", workdir)
        return json.loads(result_path.read_text())

    experiment = make_experiment(config, devices=devices)
    total_steps = experiment.total_steps
    eval_every = max(round(config.eval_every * experiment.steps_per_epoch), 1)

    variables = None if workdirs.has_saved(workdir) else experiment.start()
    # All that can be refused has been; only now is the directory taken.
    if leader:
        workdirs.claim(workdir, config)
    with contextlib.ExitStack() as stack:

        def closed_at_the_end(resource):
            return stack.enter_context(contextlib.closing(resource))

        checkpoints = closed_at_the_end(
            Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        )
        if variables is None:
            saved_in = experiment.phase_of(checkpoints.latest_step() or 0)
            state = checkpoints.restore(
                experiment.abstract_states[saved_in], replicated(experiment.mesh)
            )
        else:
            state = experiment.new_state(variables)
            del variables
        start_step = int(state.step)
        _announce(experiment, state)
        report = closed_at_the_end(
            Report(
                workdir,
                start_step=start_step,
                total_steps=total_steps,
                steps_per_epoch=experiment.steps_per_epoch,
                batch_size=config.batch_size,
                headline=experiment.task.headline,
            )
        )
        profiler = closed_at_the_end(Profiler(workdir / "profile", config.profile))
        batches = closed_at_the_end(experiment.train_batches(start_step=start_step))
        told_to_stop = stack.enter_context(_told_to_stop())

        sums = experiment.new_sums()
        phase = experiment.phase_of(start_step)
        for step in range(start_step + 1, total_steps + 1):
            if experiment.phase_of(step) != phase:
                phase = experiment.phase_of(step)
                state = experiment.new_phases[phase](state)
                _announce_phase(experiment, phase)
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
                batch = to_devices(experiment.mesh, batch)
                state, sums = experiment.train_steps[phase](state, sums, batch)
            profiler.after(step, sums)
            report.advance(step, sums)

            stops = told_to_stop.is_set() or checkpoints.preempted(step)
            saves = step % config.checkpoint_every == 0 or step == total_steps or stops
            if step % config.log_every == 0 or saves:
                _require_finite(sums, checkpoints)
                report.train(step, _means(sums))
                sums = experiment.new_sums()
            # There may be no time left for an evaluation; the last step has its own below.
            if step % eval_every == 0 and step < total_steps and not stops:
                report.evaluation(step, *experiment.evaluate(state))
            if saves:
                checkpoints.save(step, state)
            if stops:
                raise Preempted(
                    f"told to stop after step {step} of {total_steps}: all is saved in {workdir}; "
                    f"the same command goes on from there."
                )
        result, pictures = experiment.evaluate(state)
        report.evaluation(total_steps, result, pictures)
        variables = jax.device_get(state.variables())
    if leader:
        publish(workdir, config, variables, experiment.train_source.class_names)
        workdirs.write_json(result_path, result)
    return result


def _announce(experiment: Experiment, state: TrainState) -> None:
    if jax.process_index() != 0:
        return
    config, total = experiment.config, experiment.total_steps
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    log.info("devices: %s", describe_devices(list(experiment.mesh.devices.flat)))
    log.info("model: %s, %s parameters", config.model.name, f"{parameters:,}")
    log.info(
        "data: %s, %s training and %s test examples in %d classes",
        config.data.name,
        f"{len(experiment.train_source):,}",
        f"{len(experiment.eval_source):,}",
        experiment.train_source.num_classes,
    )
    start = int(state.step)
    log.info("steps: %d to %d", start, total) if start else log.info("steps: %d", total)
    _announce_phase(experiment, experiment.phase_of(start + 1))


def _announce_phase(experiment: Experiment, index: int) -> None:
    if jax.process_index() != 0 or len(experiment.phases) == 1:
        return
    phase = experiment.phases[index]
    log.info(
        "phase %d of %d: steps %d to %d, %s",
        index + 1,
        len(experiment.phases),
        phase.first_step + 1,
        phase.last_step,
        describe_trainable(phase.trainable),
    )


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
