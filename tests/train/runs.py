"""What a run left in its work directory."""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp


def history(workdir):
    """The losses of metrics.jsonl by (step, split), in their order; no row twice."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = {(row["step"], row["split"]): row["loss"] for row in rows}
    assert len(losses) == len(rows)
    return losses


def losses(workdir, split="train"):
    return [loss for (_, of), loss in history(workdir).items() if of == split]


def newest_step(workdir):
    names = [path.name for path in (Path(workdir) / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdigit())


def newest_state(workdir):
    """The arrays of the newest checkpoint, as it was saved on this number of devices."""
    with ocp.CheckpointManager(Path(workdir) / "checkpoints") as manager:
        args = ocp.args.StandardRestore()
        return jax.device_get(manager.restore(newest_step(workdir), args=args))
