"""What the networks of a comparison cost, and a plain one that costs as much."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxattn.errors import InputError, shown
from flaxattn.inspect.compiled import counts
from flaxattn.inspect.cost import macs
from flaxattn.tasks.task import abstract_batch
from flaxattn.train import workdir as workdirs
from flaxattn.train.experiment import Experiment, make_experiment

# Where a config says how wide its network is, or the body of its detector or segmenter.
WIDTHS = ("model.width", "model.body.width", "model.backbone.width")
WIDEST = 3  # times the base


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a network costs.

    Fields:
        parameters: how many.
        macs: multiply-adds of an image (`flaxattn.inspect.cost`).
        bytes: that the compiler of the device at hand counts for the evaluation of an image, in a
            batch as large as in training.
    """

    parameters: int
    macs: int
    bytes: int


def multiply_adds(experiment: Experiment) -> int:
    """Of one image."""
    return macs(experiment.model.apply, *_abstract(experiment, 1))


def spent_by(experiment: Experiment) -> Spent:
    """What the network of an experiment costs; it is compiled for that."""
    batch_size = experiment.config.batch_size
    arguments = _abstract(experiment, batch_size)
    compiled = jax.jit(experiment.model.apply).trace(*arguments).lower().compile()
    sizes = (math.prod(p.shape) for p in jax.tree.leaves(arguments[0]["params"]))
    return Spent(
        parameters=sum(sizes),
        macs=multiply_adds(experiment),
        bytes=round(counts(compiled, 0.0).bytes / batch_size),
    )


def plain_of_equal_cost(
    experiments: Mapping[str, Experiment], base: str
) -> tuple[str, Experiment] | None:
    """The plain network of equal cost, behind its name; None where the base is the costliest."""
    each = {name: multiply_adds(experiment) for name, experiment in experiments.items()}
    most = max(each.values())
    if most <= each[base]:
        return None
    wide, width = widened(experiments[base].config, most)
    return f"{base}_width_{width}", make_experiment(wide)


def widened(config: ConfigDict, most: int) -> tuple[ConfigDict, int]:
    """The narrowest network that is wider than the config's and has `most` multiply-adds or more.

    Returns its config, and the width of its first stage.
    """
    known = workdirs.flat_fields(config.to_dict())
    field = next((field for field in WIDTHS if known.get(field)), None)
    if field is None:
        raise InputError(
            f"the config has none of {', '.join(WIDTHS)}, by which a plain network of equal cost "
            f"could be made: add --no-equal-cost, or state the width in the config."
        )
    if config.init.weights:
        raise InputError(
            f"no wider network starts from init.weights={shown(config.init.weights)}, so there is "
            f"no plain one of equal cost: add --no-equal-cost."
        )
    usual = known[field]
    first = usual if isinstance(usual, int) else usual[0]
    for width in range(first + 1, WIDEST * first + 1):
        wide = ConfigDict(config.to_dict())
        scaled = width if isinstance(usual, int) else [round(w * width / first) for w in usual]
        wide.update_from_flattened_dict({field: type(usual)(scaled)})
        if multiply_adds(make_experiment(wide)) >= most:
            return wide, width
    raise InputError(
        f"no plain network costs as much as the costliest mechanism, up to {WIDEST} times as wide: "
        f"add --no-equal-cost, or leave that mechanism out."
    )


def _abstract(experiment: Experiment, batch_size: int) -> tuple[Any, ...]:
    """The arguments of the model's `apply`, without values."""
    state = experiment.abstract_states[0]
    inputs = experiment.task.inputs(abstract_batch(experiment.task, batch_size))
    return (state.variables(), *inputs)
