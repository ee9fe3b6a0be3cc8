"""The two jitted programs of a run: one training step, one evaluation step."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flaxattn.layers.initialise import TreePath
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.precision import at_least_float32
from flaxattn.tasks.task import Batch, Measured, Task, abstract_batch
from flaxattn.train.phases import Phase, frozen_norms
from flaxattn.train.sharding import by_example, replicated
from flaxattn.train.state import TrainState, merged, part

Sums = dict[str, Array]
TrainStep = Callable[[TrainState, Sums, Batch], tuple[TrainState, Sums]]


class Evaluated(NamedTuple):
    """Of one batch: what the task measures, which rows are examples, and what was predicted.

    The measured sums are those of the examples with mask 1; the records are of all, gathered. The
    predictions are of the first rows alone.
    """

    measured: Measured
    mask: Array
    predictions: Any


EvalStep = Callable[[Any, Batch], Evaluated]


def empty_sums(task: Task, config: ConfigDict) -> Sums:
    """What training adds up on the device between two log lines, in float32 or wider."""
    names = ("loss", *task.logged, "grad_norm", "learning_rate", "steps")
    zeros = {name: jnp.zeros((), at_least_float32(config.dtype)) for name in names}
    return zeros | {"first_bad_step": jnp.full((), -1, jnp.int32)}


def make_train_step(
    model: nn.Module, task: Task, phase: Phase, mesh: Mesh, config: ConfigDict
) -> TrainStep:
    """`step(state, sums, batch)` of a phase; both state and sums are donated.

    Its randomness is a function of (config.seed, state.step) alone. A loss, gradient or state that
    is not finite leaves its step in `sums["first_bad_step"]`: the host asks when it next logs or
    saves.
    """
    micro_batches = config.optim.accumulation

    def loss_fn(learning, state, batch_stats, key, batch):
        frozen = frozen_norms(batch_stats, phase.trainable)
        # The mesh is there for what a model or a task does under `shard_map`.
        with (
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
            nn.intercept_methods(_in_evaluation(frozen)),
        ):
            outputs, updates = model.apply(
                {"params": merged(state.params, learning), "batch_stats": batch_stats},
                *task.inputs(batch),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key, "sample": jax.random.fold_in(key, 1)},
            )
            loss, logged = task.loss(outputs, batch)
        moved = updates.get("batch_stats", {})
        return loss, (_kept(batch_stats, moved, frozen), {"loss": loss, **logged})

    def gradients(learning, state, key, batch):
        """Mean gradients over the micro-batches; the statistics see one after the other."""

        def body(carry, inputs):
            batch_stats, total = carry
            index, micro_batch = inputs
            found, (batch_stats, aux) = jax.grad(loss_fn, has_aux=True)(
                learning, state, batch_stats, jax.random.fold_in(key, index), micro_batch
            )
            return (batch_stats, jax.tree.map(jnp.add, total, (found, aux))), None

        zeros = jax.tree.map(jnp.zeros_like, learning)
        empty = {name: empty_sums(task, config)[name] for name in ("loss", *task.logged)}
        inputs = (jnp.arange(micro_batches), jax.tree.map(_interleave(micro_batches), batch))
        (batch_stats, total), _ = jax.lax.scan(body, (state.batch_stats, (zeros, empty)), inputs)
        means = jax.tree.map(lambda t: t / micro_batches, total)
        return *means, batch_stats

    def train_step(state: TrainState, sums: Sums, batch: Batch) -> tuple[TrainState, Sums]:
        chex.assert_trees_all_equal_shapes_and_dtypes(
            batch, abstract_batch(task, config.batch_size)
        )
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        prepare_key, dropout_key = jax.random.split(key)
        batch = task.prepare(prepare_key, batch)
        learning = part(state.params, phase.trainable)
        if micro_batches == 1:
            found, (batch_stats, aux) = jax.grad(loss_fn, has_aux=True)(
                learning, state, state.batch_stats, dropout_key, batch
            )
        else:
            found, aux, batch_stats = gradients(learning, state, dropout_key, batch)
        # optax mixes its integer count with Python floats, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = phase.optimizer.update(found, state.opt_state, learning)
            rate = phase.schedule(state.step - phase.first_step)
        params = merged(state.params, optax.apply_updates(learning, updates))
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_averaged(state, params, batch_stats, config.ema_decay),
        )
        aux |= {"grad_norm": optax.tree.norm(found), "learning_rate": rate}
        return new_state, _added(sums, aux, new_state)

    return jax.jit(
        train_step,
        donate_argnums=(0, 1),
        in_shardings=(replicated(mesh), replicated(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
    )


def make_eval_step(model: nn.Module, task: Task, mesh: Mesh, *, pictures: int = 0) -> EvalStep:
    """`step(variables, batch)`, with the predictions for so many pictures."""

    def eval_step(variables, batch: Batch) -> Evaluated:
        mask = batch["mask"]
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            outputs = model.apply(variables, *task.inputs(batch), train=False)
            sums, records = task.measure(outputs, batch)
            predictions = jax.tree.map(lambda x: x[:pictures], task.predict(outputs))

        def masked_sum(values: Array) -> Array:
            # where, not a product: a padding row may well be NaN, and NaN times zero is NaN.
            real = mask.reshape(-1, *[1] * (values.ndim - 1)) > 0
            return jnp.sum(jnp.where(real, values, jnp.zeros_like(values)), axis=0)

        return Evaluated(Measured(jax.tree.map(masked_sum, sums), records), mask, predictions)

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
    )


def _in_evaluation(norms: Collection[TreePath]) -> Callable[..., Any]:
    """Has these batch normalisations use their running statistics, and keep them."""

    def intercept(method, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and module.path in norms:
            return method(args[0], train=False)
        return method(*args, **kwargs)

    return intercept


def _kept(before, after, modules: Collection[TreePath]):
    """The statistics `after` a step, those of `modules` as they were."""
    if not modules:
        return after
    old = flatten_dict(before)
    return unflatten_dict(
        {path: old[path] if path[:-1] in modules else x for path, x in flatten_dict(after).items()}
    )


def _interleave(micro_batches: int) -> Callable[[Array], Array]:
    """Micro-batch m takes rows m, m + micro_batches, ...: each device splits what it has."""

    def split(x: Array) -> Array:
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return split


def _averaged(state: TrainState, params, batch_stats, decay: float):
    """The moving averages after this step; young ones follow faster, by (1 + t) / (10 + t)."""
    if not decay:
        return {}
    t = state.step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + t) / (10 + t))
    latest = {"params": params, "batch_stats": batch_stats}

    def moved(old: Array, new: Array) -> Array:
        return old + (1 - rate).astype(old.dtype) * (new - old)

    return jax.tree.map(moved, state.ema, latest)


def _added(sums: Sums, aux: dict[str, Array], state: TrainState) -> Sums:
    size = optax.tree.norm((state.params, state.batch_stats))
    finite = jnp.isfinite(aux["loss"]) & jnp.isfinite(aux["grad_norm"]) & jnp.isfinite(size)
    first_bad = sums["first_bad_step"]
    added = {name: sums[name] + jnp.asarray(v, sums[name].dtype) for name, v in aux.items()}
    return added | {
        "steps": sums["steps"] + 1,
        "first_bad_step": jnp.where((first_bad < 0) & ~finite, state.step, first_bad),
    }
