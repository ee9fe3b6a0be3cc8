"""Learning-rate schedule and optimiser, from config fields to optax."""

from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from flaxattn.errors import InputError, unknown

_DECAYS: dict[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": optax.cosine_decay_schedule,
    "poly": lambda peak, steps: optax.polynomial_schedule(peak, 0.0, 0.9, steps),
    "none": lambda peak, _: optax.constant_schedule(peak),
}


def learning_rate(
    config: ConfigDict, *, steps_per_epoch: int, total_steps: int, peak: float | None = None
) -> optax.Schedule:
    """Linear warm-up from zero over `warmup_epochs`, then what `decay` says.

    "cosine": half a cosine down to zero at the end; "poly": (1 - t)^0.9 of it where a part t of the
    steps is done, as is usual for segmentation (arXiv:1606.00915); "none": it stays.

    peak: instead of `learning_rate`.
    """
    peak = config.learning_rate if peak is None else peak
    if config.decay not in _DECAYS:
        raise unknown("optim.decay", config.decay, _DECAYS)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise InputError(
            f"optim.warmup_epochs={config.warmup_epochs} is the whole run or phase of "
            f"{total_steps} steps: use fewer, or more epochs."
        )
    decay = _DECAYS[config.decay](peak, total_steps - warmup_steps)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps]) if warmup_steps else decay


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then the optimiser `config.name`: "sgd", "adamw" or "lamb".

    SGD adds weight decay to the gradient, as torch does; the others decouple it from the gradient.
    Only kernels decay: not biases, not norms, not gammas.
    """
    decay = config.weight_decay
    rules = {
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(decay, mask=kernels),
            optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
        ),
        "adamw": lambda: optax.adamw(schedule, weight_decay=decay, mask=kernels),
        "lamb": lambda: optax.lamb(schedule, weight_decay=decay, mask=kernels),
    }
    if config.name not in rules:
        raise unknown("optimizer", config.name, rules)
    rule = rules[config.name]()
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, rule)


def kernels(params):
    """True for each array called kernel: the ones that weight decay touches."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
