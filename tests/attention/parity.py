"""Numerical agreement of Flax layers with their PyTorch references.

Each test_<mechanism>.py lists its `Case`s as CASES, and test_parity.py runs `check` on all of them:
every parameter and running statistic is drawn at random; compared are, in eval and in train mode,
the answer, the gradients of input and of parameters, and the running statistics after the step.
Each error is relative to the largest value that torch has, and goes into the table that pytest
prints at the end.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn import weights
from flaxattn.attention import create_attention
from flaxattn.errors import InputError
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.weights.convert import fit
from flaxattn.weights.naming import Naming

FEATURES = 32
MAPS = ((56, 56), (13, 7), (1, 1))
BATCHES = (1, 4)

# DESIGN.md, "Truth": forward, gradient and statistics bounds in float32; all the same in float64.
BOUNDS = {"float32": {"forward": 1e-5, "gradient": 1e-4, "statistics": 1e-5}}
BOUNDS["float64"] = dict.fromkeys(BOUNDS["float32"], 1e-10)


class Inputs(NamedTuple):
    """What a layer and its reference are compared on.

    Fields:
        maps: sizes (H, W); of one or three axes for layers that take such maps. If the case's rows
            are names alone, what is left of MAPS is compared too, under make test-all.
        refused: sizes in MAPS that the layer refuses, its reference fails on, or another case has.
        features: channels of the input.
        batches: sizes of the batch, fewer where the reference fails on one.
        dtypes: to compare in, fewer where torch fails in one.
        slow: leave it all to make test-all, where it takes too many seconds.
    """

    maps: tuple[tuple[int, ...], ...] = MAPS
    refused: tuple[tuple[int, ...], ...] = ()
    features: int = FEATURES
    batches: tuple[int, ...] = BATCHES
    dtypes: tuple[str, ...] = ("float32", "float64")
    slow: bool = False

    def shapes(self, dtype, *, names_alone):
        """Inputs (N, H, W, C) of each batch size and map, and whether test-all alone has it.

        Of `maps`, make test takes the largest and the single position with a batch of one, in
        float32, and the others with the larger batch, in float64.
        """
        if dtype not in self.dtypes:
            return []
        left = {*MAPS} - {*self.maps} - {*self.refused} if names_alone else ()
        extremes = {size for size in self.maps if math.prod(size) in (1, math.prod(MAPS[0]))}

        def is_quick(n, size):
            if size in extremes:
                return n == self.batches[0] and dtype == "float32"
            widest = dtype == "float64" or "float64" not in self.dtypes
            return size in self.maps and n == self.batches[-1] and widest

        return [
            ((n, *size, self.features), self.slow or not is_quick(n, size))
            for n in self.batches
            for size in (*self.maps, *sorted(left))
        ]


class Case(NamedTuple):
    """A layer and the reference it must equal.

    Fields:
        rows: of the printed table: "name" as in ATTENTION, or "name.variant", then perhaps a comma
            and what else is special. Several rows are several names of one and the same layer.
        fields: of the layer, beside those that the variant sets.
        reference: makes the torch module.
        naming: of the reference's weights, or renames, where the layer knows no such source.
        on: the inputs.
        modes: values of `train` to compare in.
        refuses: whether train mode is refused by both sides for (N, H, W): batch normalisation
            of one value per channel. None: for one position, if the layer has a `norm`.
        exact: take torch's outputs in float64 for both precisions. For layers that magnify rounding
            so that torch's own float32 gradients are farther from the truth than the bound.
        cancelled: torch parameters whose gradients are zero but for rounding, such as those of a
            bias that batch normalisation or a softmax takes away again: measured against the
            largest gradient of all.
        seed: of the weights and the input. Another than 0 where two of the values drawn from 0 are
            so nearly one maximum that rounding chooses which of them gets the gradient, or where
            torch's own float32 outputs for them are farther from its float64 ones than the bound.
    """

    rows: tuple[str, ...]
    fields: dict[str, Any]
    reference: Callable[[], torch.nn.Module]
    naming: Naming | None
    on: Inputs = Inputs()
    modes: tuple[bool, ...] = (False, True)
    refuses: Callable[..., bool] | None = None
    exact: bool = False
    cancelled: tuple[str, ...] = ()
    seed: int = 0

    @property
    def layer(self):
        layers = [
            create_attention(name, variant=variant, **self.fields)
            for name, variant in map(mechanism, self.rows)
        ]
        assert all(layer == layers[0] for layer in layers), f"{self.rows} are different layers"
        return layers[0]

    def shapes(self, dtype):
        return self.on.shapes(dtype, names_alone=", " not in self.rows[-1])

    def is_refused(self, shape):
        """Whether train mode is refused for an input of `shape`."""
        if self.refuses is not None:
            return self.refuses(*shape[:-1])
        return getattr(self.layer, "norm", None) is not None and set(shape[:-1]) == {1}


def mechanism(row):
    """The name and the variant, or None, that a row is about."""
    name, _, variant = row.partition(", ")[0].partition(".")
    return name, variant or None


def per_sample(batch, *_):
    """`refuses` of layers that normalise one vector per sample, over the batch."""
    return batch == 1


def check(record_property, case, shape, dtype):
    """Compares in each of the case's modes, and enters the errors under all its rows."""
    rng = np.random.default_rng(case.seed)
    reference = case.reference()
    randomise(reference, rng)
    x = rng.normal(size=shape)
    with jax.enable_x64(dtype == "float64"):
        layer = case.layer.clone(param_dtype=jnp.dtype(dtype))
        programs = {}
        for train in case.modes:
            if train and case.is_refused(shape):
                _check_refused(layer, reference, x, shape, dtype, case.naming)
                continue
            found = errors(
                layer,
                reference,
                x,
                train,
                dtype,
                case.naming,
                programs,
                exact=case.exact,
                cancelled=case.cancelled,
            )
            for quantity, error in found.items():
                bound = BOUNDS[dtype][quantity]
                for row in case.rows:
                    record_property("parity", (row, f"{quantity} {dtype}", error, bound))
                mode = "train" if train else "eval"
                assert error <= bound, f"{case.rows}: {quantity} in {mode} mode: {error:.1e}"


def randomise(module, rng):
    """Random weights of a realistic size, and running statistics that are not the initial ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 4
            parameter.copy_(torch.tensor(rng.normal(size=parameter.shape) / fan_in**0.5))
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.tensor(rng.normal(size=buffer.shape)))
            if key.endswith("running_var"):
                buffer.copy_(torch.tensor(rng.uniform(0.5, 2, size=buffer.shape)))


def errors(layer, reference, x, train, dtype, naming, programs, *, exact=False, cancelled=()):
    """Largest relative differences: {"forward", "gradient", and "statistics" if there are any}.

    `programs` keeps what was compiled, by the layer's equations: in most `train` changes nothing.
    """
    reference = reference.to(getattr(torch, dtype)).train(train)
    x = x.astype(dtype)
    if exact:
        reference = reference.double()
    before = {key: value.detach().numpy().copy() for key, value in reference.state_dict().items()}

    theirs = next(reference.parameters(), torch.tensor(x[:0])).dtype
    x_torch = torch.tensor(to_channels_first(x), dtype=theirs, requires_grad=True)
    answer = reference(x_torch)
    cotangent = np.random.default_rng(1).normal(size=answer.shape)
    reference.zero_grad()
    answer.backward(torch.tensor(cotangent, dtype=answer.dtype))
    gradients = {key: p.grad.numpy() for key, p in reference.named_parameters()}
    after = {key: value.detach().numpy() for key, value in reference.state_dict().items()}

    targets = flatten_dict(abstract_variables(layer, x.shape))

    def in_our_order(tensors):
        """Tensors by torch's names as if they were weights."""
        found = fit(layer, targets, tensors, naming)
        assert not found.wrong
        return unflatten_dict({path: found.filled[path] for path in targets})

    variables = in_our_order(before)
    params = variables.get("params", {})
    statistics = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def apply(params, statistics, x):
        return layer.apply({"params": params, **statistics}, x, train=train, mutable=[*statistics])

    def step(params, statistics, x, cotangent):
        ours, pullback, moved = jax.vjp(
            lambda params, x: apply(params, statistics, x), params, x, has_aux=True
        )
        return ours, moved, *pullback(cotangent)

    # A layer with statistics has a mode to train in; of others it is asked.
    equations = train if statistics else str(apply.trace(params, statistics, x).jaxpr)
    cotangent = to_channels_last(cotangent).astype(dtype)
    if equations not in programs:
        programs[equations] = jax.jit(step).lower(params, statistics, x, cotangent).compile()
    ours, moved, params_grad, x_grad = programs[equations](params, statistics, x, cotangent)

    theirs = in_our_order(after | gradients)
    expected_grad = theirs.get("params", {})
    largest = max([abs(g).max() for g in jax.tree.leaves(expected_grad)], default=0.0)
    # How small a gradient may be, as a part of the largest, and still be measured against itself.
    parts = jax.tree.map(lambda _: np.asarray(0.01), expected_grad)
    if cancelled:
        parts = {k: np.full_like(v, 1.0 if k in cancelled else 0.01) for k, v in before.items()}
        parts = in_our_order(parts)["params"]
    found = {
        "forward": difference(ours, to_channels_last(answer.detach().numpy())),
        "gradient": max(
            difference(x_grad, to_channels_last(x_torch.grad.numpy())),
            # A gradient that is zero but for rounding is measured against the other parameters'.
            *[
                difference(a, b, at_least=part.max() * largest)
                for a, b, part in zip(
                    *map(jax.tree.leaves, (params_grad, expected_grad, parts)), strict=True
                )
            ],
            0.0,
        ),
    }
    if train and statistics:
        expected = {k: v for k, v in theirs.items() if k != "params"}
        found["statistics"] = max(
            difference(a, b)
            for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)
        )
    return found


def difference(ours, theirs, *, at_least=0.0):
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    scale = max(np.abs(theirs).max(), at_least)
    error = np.abs(ours - theirs).max()
    assert np.isfinite(error)
    return float(error / scale) if scale else float(error)


def _check_refused(layer, reference, x, shape, dtype, naming):
    reference = reference.to(getattr(torch, dtype)).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reference(torch.tensor(to_channels_first(x), dtype=getattr(torch, dtype)))
    before = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    variables = weights.load(layer, before, shape, naming)
    with pytest.raises(InputError, match="more than one value per channel"):
        layer.apply(variables, jnp.asarray(x, dtype), train=True, mutable=["batch_stats"])


def to_channels_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def to_channels_last(x):
    """Maps with their channels last; vectors as they are."""
    return np.moveaxis(x, 1, -1)
