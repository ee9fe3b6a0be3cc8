"""What a run left in its work directory."""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest

from flaxattn.train.loop import run


def rows(workdir):
    """The metrics of metrics.jsonl by (step, split), in their order, without speeds; none twice."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    metrics = {
        (row.pop("step"), row.pop("split")): {k: v for k, v in row.items() if "per_second" not in k}
        for row in found
    }
    assert len(metrics) == len(found)
    return metrics


def history(workdir):
    """The losses of `rows`."""
    return {place: metrics["loss"] for place, metrics in rows(workdir).items()}


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


def assert_same_on_eight_devices(config, folder):
    """A run in float64 logs and measures the same on one device and on eight, to 1e-12."""
    with jax.enable_x64(True):
        for count in (1, 8):
            run(config, folder / str(count), devices=jax.devices()[:count])
    one, eight = rows(folder / "1"), rows(folder / "8")
    assert list(one) == list(eight)
    for place, metrics in one.items():
        assert eight[place] == pytest.approx(metrics, rel=1e-12, abs=0), place
