"""A work directory belongs to one experiment."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flaxattn.errors import InputError
from flaxattn.train.config import base_config

# Fields that say how a run is carried out, not what it computes: they may change between restarts.
_MAY_CHANGE = {
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "eval_batch_size",
    "pictures",
    "data.data_dir",
    "data.workers",
    "profile.start",
    "profile.steps",
}


def require_same(workdir: Path, config: ConfigDict) -> None:
    """InputError if `workdir` is another experiment's, or cannot be a directory."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"the work directory {workdir} is a file: choose another --workdir.")
    path = workdir / "config.json"
    # First the checkpoints: another process of this run may be writing both, config.json first.
    holds_checkpoints = (workdir / "checkpoints").exists()
    if path.exists():
        differing = sorted(_differences(json.loads(path.read_text()), _fields(config)))
        if differing:
            raise InputError(
                f"the work directory {workdir} holds another experiment, which differs in "
                f"{'; '.join(differing)}: choose another --workdir, or delete that one."
            )
    elif holds_checkpoints:
        raise InputError(
            f"the work directory {workdir} holds checkpoints but no config.json that says whose: "
            f"choose another --workdir, or delete that one."
        )


def has_saved(workdir: Path) -> bool:
    """Whether a run was saved there and goes on."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes `workdir` this experiment's."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the work directory {workdir}: {error}.") from error
    write_json(workdir / "config.json", _fields(config))


def write_json(path: Path, value: Any) -> None:
    """Writes all of it or nothing."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def _fields(config: ConfigDict) -> dict:
    return json.loads(config.to_json())


def _differences(theirs: dict, ours: dict) -> list[str]:
    # A field that did not exist when the directory was written had what is now its default.
    theirs = flat_fields(_fields(base_config())) | flat_fields(theirs)
    ours = flat_fields(ours)
    return [
        f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in theirs.keys() | ours.keys()
        if name not in _MAY_CHANGE and theirs.get(name) != ours.get(name)
    ]


def flat_fields(fields: dict, prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= flat_fields(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
