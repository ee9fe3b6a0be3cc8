"""Saving and restoring the state: all of Orbax is here."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from flaxattn.errors import InputError
from flaxattn.train.state import TrainState


class Checkpoints:
    """The checkpoints of one work directory, newest last.

    Saves are asynchronous and atomic: a step's directory takes its name only when all of it is
    written, so a process killed while saving leaves the earlier checkpoints and nothing else.
    """

    def __init__(self, directory: Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.directory = directory
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, abstract_state: TrainState, sharding: Sharding) -> TrainState:
        """The newest state, laid out as `sharding` whatever devices it was saved from."""
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract_state
        )
        return self._manager.restore(self.latest_step(), args=ocp.args.StandardRestore(target))

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save; returns once the state may be changed."""
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def preempted(self, step: int) -> bool:
        """Whether the machines are to be taken away, agreed by all processes of the run."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits for the save in progress."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_variables(workdir: str | Path) -> dict[str, Any]:
    """What the run in `workdir` has trained, for `model.apply`: {"params", "batch_stats"}.

    They are the newest checkpoint's, on this process's first device: the moving averages where the
    run keeps them, as in its own evaluation. The model to apply is the config's.

    Raises InputError if there is no checkpoint.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise InputError(f"{workdir} holds no checkpoints: give the work directory of a run.")
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    options = ocp.CheckpointManagerOptions(create=False)
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.CheckpointManager(directory, options=options, item_handlers=handler) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"the run in {workdir} has saved nothing yet: wait for a checkpoint.")
        saved = manager.item_metadata(step)
        names = ("ema",) if saved["ema"] else ("params", "batch_stats")
        wanted = {name: saved[name] for name in names}
        restored = manager.restore(
            step,
            args=ocp.args.PyTreeRestore(
                jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted),
                restore_args=jax.tree.map(
                    lambda _: ocp.ArrayRestoreArgs(sharding=sharding), wanted
                ),
                partial_restore=True,
            ),
        )
    return restored.get("ema", restored)
