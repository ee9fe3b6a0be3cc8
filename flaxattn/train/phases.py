"""Phases of a training, in which other parts of the network learn, at other rates."""

import dataclasses
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from flaxattn.errors import InputError, unknown
from flaxattn.layers.fields import require_type
from flaxattn.layers.initialise import TreePath
from flaxattn.models.overview import overview
from flaxattn.train.optimizer import learning_rate, make_optimizer
from flaxattn.train.state import TrainState, part

ALL, ATTENTION, HEAD, LAST_STAGE = "all", "attention", "head", "last_stage"
_FIELDS = {"start": float, "train": str | Sequence[str], "learning_rate": float}
_NEEDED = ("start", "train")


class Phase(NamedTuple):
    """Some steps of a training.

    Fields:
        first_step, last_step: steps first_step + 1 to last_step belong to it.
        trainable: the parameters that learn; None for all. What does not learn is frozen: it has no
            gradient, no weight decay, no optimiser state, and its normalisations keep their
            statistics and use them.
        schedule: the learning rate by steps since the phase began.
        optimizer: its state begins anew with the phase.
    """

    first_step: int
    last_step: int
    trainable: frozenset[TreePath] | None
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    def begun(self, state: TrainState) -> TrainState:
        """The state with which the phase begins, of the one that the phase before left."""
        opt_state = self.optimizer.init(part(state.params, self.trainable))
        return dataclasses.replace(state, opt_state=opt_state)


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    inputs: Sequence[jax.ShapeDtypeStruct],
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> tuple[Phase, ...]:
    """The phases of an experiment's config: one of everything if `config.phases` is empty.

    Each is a mapping with `start`, the epochs before it, `train` and perhaps `learning_rate`, else
    `config.optim`'s. `train` lists what learns: "all"; "attention", the layers of such a role;
    "head", the last layers; "last_stage", the backbone's; or patterns of parameters' names and of
    their modules', such as "layer4_*" or "layer4_0/bn2/scale".

    Raises InputError for phases that do not follow each other within the run's epochs, for other
    fields, and for what matches no parameter.
    """
    described = config.phases or ({"start": 0, "train": (ALL,)},)
    starts = [_start(phase, steps_per_epoch) for phase in described]
    if starts[0] or sorted(set(starts)) != starts or starts[-1] >= total_steps:
        raise InputError(
            f"phases start after {', '.join(str(phase['start']) for phase in described)} epochs: "
            f"let the first start at 0, each later than the one before, and all before the end at "
            f"epochs={config.epochs}."
        )
    found = overview(model, inputs)
    params = flatten_dict(found.variables["params"])
    groups = {ATTENTION: found.attention, HEAD: found.heads, LAST_STAGE: found.last_stage}
    phases = []
    for phase, first, last in zip(described, starts, [*starts[1:], total_steps], strict=True):
        schedule = learning_rate(
            config.optim,
            peak=phase.get("learning_rate", config.optim.learning_rate),
            steps_per_epoch=steps_per_epoch,
            total_steps=last - first,
        )
        phases.append(
            Phase(
                first,
                last,
                _trainable(phase["train"], params, groups),
                schedule,
                make_optimizer(config.optim, schedule),
            )
        )
    return tuple(phases)


def _start(phase: Mapping[str, Any], steps_per_epoch: int) -> int:
    require_type("a phase", phase, Mapping)
    for field in _NEEDED:
        if field not in phase:
            raise InputError(f"the phase {dict(phase)} lacks {field}: it needs start and train.")
    for field, value in phase.items():
        if field not in _FIELDS:
            raise unknown("field of a phase", field, _FIELDS)
        require_type(f"{field} of a phase", value, _FIELDS[field])
    return round(phase["start"] * steps_per_epoch)


def _trainable(
    wanted: str | Sequence[str],
    params: Collection[TreePath],
    groups: Mapping[str, Sequence[TreePath]],
) -> frozenset[TreePath] | None:
    """The paths of the parameters that `wanted` means; None for all."""
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if ALL in wanted:
        return None
    chosen: set[TreePath] = set()
    for pattern in wanted:
        if pattern in groups:
            matched = {p for p in params for layer in groups[pattern] if p[: len(layer)] == layer}
        else:
            matched = {p for p in params if _matches(p, pattern)}
        if not matched:
            known = [ALL, *groups, *dict.fromkeys(path[0] for path in params)]
            raise unknown("part of the network to train", pattern, known)
        chosen |= matched
    if not chosen:
        raise InputError(f"a phase trains nothing: use {ALL}, {ATTENTION}, {HEAD} or names.")
    return frozenset(chosen)


def _matches(path: TreePath, pattern: str) -> bool:
    """Whether a parameter, or a module that it is in, has such a name."""
    names = ("/".join(path[:end]) for end in range(1, len(path) + 1))
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def frozen_norms(
    batch_stats: Mapping[str, Any], paths: Collection[TreePath] | None
) -> set[TreePath]:
    """The modules with running statistics none of whose parameters learn."""
    if paths is None:
        return set()
    return {path[:-1] for path in flatten_dict(dict(batch_stats))} - {path[:-1] for path in paths}


def describe_trainable(paths: Collection[TreePath] | None) -> str:
    """What learns, by its modules."""
    if paths is None:
        return "everything learns"
    modules = sorted({"/".join(path[:-1]) for path in paths})
    few = f"{', '.join(modules[:6])}{f' and {len(modules) - 6} more' if len(modules) > 6 else ''}"
    return f"{len(paths)} parameter arrays learn: {few}"
