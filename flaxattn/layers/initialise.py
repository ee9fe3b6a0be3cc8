"""The variables that a module starts with, without running or compiling it."""

import concurrent.futures
import math
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from flax import linen as nn
from jax import Array
from jax.extend import core

from flaxattn.errors import InputError
from flaxattn.layers.abstract_variables import Shape, abstract_input
from flaxattn.layers.fields import checked
from flaxattn.layers.precision import at_least_float32

TreePath = tuple[str, ...]  # to one array, its collection first


@checked
def initialise(
    module: nn.Module,
    key: Array,
    input_shape: Shape | Sequence[Shape],
    *,
    paths: Collection[TreePath] | None = None,
) -> dict[str, Any]:
    """What a module starts with: as `module.init`, in distribution, but in a part of its time.

    Flax's `init` runs the whole network, operation by operation; under `jit` it compiles it, and
    XLA takes two seconds on a CPU for the random numbers of each shape. Here the module is traced
    only. Of the trace each variable's own initialiser is computed by NumPy, from numbers that
    follow from `key` and the variable's path alone: they are the same on every machine.

    Args:
        module: any that can be called with such an input.
        key: a typed one, of `jax.random.key`.
        input_shape: (N, H, W, C) of the input, or a list of them for a module that takes several.
        paths: of the variables to make, as `flax.traverse_util.flatten_dict` has them, instead of
            all; the others are None.

    An initialiser with operations that NumPy is not told of below, such as a QR decomposition, is
    computed by JAX.

    Raises InputError for sizes below one, and for what the module refuses.
    """
    inputs = (abstract_input(module, input_shape),)
    if not input_shape or any(min(x.shape, default=0) < 1 for x in jax.tree.leaves(inputs)):
        raise InputError(f"input_shape={tuple(input_shape)} must be one or more sizes above 0.")
    return jax.device_put(initialise_for(module, key, inputs, paths=paths))


def initialise_for(
    module: nn.Module,
    key: Array,
    inputs: Sequence[Any],
    *,
    paths: Collection[TreePath] | None = None,
) -> dict[str, Any]:
    """`initialise` for any positional arguments, abstract ones, and on the host: NumPy arrays."""
    trace, shapes = jax.make_jaxpr(module.init, return_shape=True)(key, *inputs)
    leaves, tree = jax.tree.flatten_with_path(shapes)
    drawn = _Values(trace, [_folded(np.asarray(jax.random.key_data(key)), 0)])
    chosen = {
        index: trace.jaxpr.outvars[index]
        for index, (path, _) in enumerate(leaves)
        if paths is None or tuple(part.key for part in path) in paths
    }
    made: list[Any] = [None] * len(leaves)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, array in zip(chosen, pool.map(drawn.get, chosen.values()), strict=True):
            made[index] = array
    if strange := [index for index in chosen if made[index] is None]:

        @jax.jit
        def init(key: Array) -> list[Array]:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tuple(inputs))
            variables = jax.tree.leaves(module.init(key, *zeros))
            return [variables[index] for index in strange]

        for index, array in zip(strange, jax.device_get(init(key)), strict=True):
            made[index] = array
    return jax.tree.unflatten(tree, made)


class _Unknown(Exception):
    """An operation that is not in _OPERATIONS."""


class _Values:
    """The values of a trace's variables, each computed when it is asked for, by NumPy."""

    def __init__(self, trace: core.ClosedJaxpr, inputs: Sequence[np.ndarray]):
        jaxpr = trace.jaxpr
        self.makers = {made: step for step in jaxpr.eqns for made in step.outvars}
        self.known = dict(zip(jaxpr.constvars, map(np.asarray, trace.consts), strict=True))
        self.known |= dict(zip(jaxpr.invars, inputs, strict=False))

    def get(self, variable: Any) -> np.ndarray | None:
        """None where NumPy lacks an operation."""
        try:
            return self.of(variable)
        except _Unknown:
            return None

    def of(self, variable: Any) -> np.ndarray:
        if isinstance(variable, core.Literal):
            abstract: Any = variable.aval
            return np.asarray(variable.val, abstract.dtype)
        if variable not in self.known:
            if (step := self.makers.get(variable)) is None:
                raise _Unknown("the module's input")
            made = self._computed(step)
            self.known |= dict(zip(step.outvars, made, strict=True))
        return self.known[variable]

    def _computed(self, step: core.JaxprEqn) -> list[np.ndarray]:
        inputs = [self.of(given) for given in step.invars]
        if step.primitive.name in ("jit", "pjit"):
            inner = _Values(step.params["jaxpr"], inputs)
            return [inner.of(made) for made in step.params["jaxpr"].jaxpr.outvars]
        if step.primitive.name not in _OPERATIONS:
            raise _Unknown(step.primitive.name)
        abstract: Any = step.outvars[0].aval
        made = _OPERATIONS[step.primitive.name](*inputs, **step.params)
        is_key = jax.dtypes.issubdtype(abstract.dtype, jax.dtypes.prng_key)
        return [made if is_key else made.astype(abstract.dtype, copy=False)]


def _folded(key: np.ndarray, number: Any) -> np.ndarray:
    """A key of two words that follows from another, of any length, and a number."""
    return np.random.SeedSequence([*key.tolist(), int(number)]).generate_state(2)


def _bits(key: np.ndarray, *, bit_width: int, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(f"uint{bit_width}")
    size = math.prod(shape) * dtype.itemsize
    words = np.random.Philox(key=key.astype(np.uint64)).random_raw(-(-size // 8))
    return words.view(np.uint8)[:size].view(dtype).reshape(shape)


def _broadcast(
    x: np.ndarray, *, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...], **_: Any
) -> np.ndarray:
    own = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return np.broadcast_to(x.reshape([own.get(axis, 1) for axis in range(len(shape))]), shape)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(at_least_float32(x.dtype), copy=False)


# What the initialisers of Flax and of this package are made of. SciPy loads its functions when they
# are first asked for, which takes longer than this package takes to import.
_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda x, y, **_: x + y,
    "bitcast_convert_type": lambda x, *, new_dtype, **_: x.view(new_dtype),
    "broadcast_in_dim": _broadcast,
    "clamp": lambda low, x, high, **_: np.clip(x, low, high),
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "div": lambda x, y, **_: x / y,
    "erf": lambda x, **_: scipy.special.erf(_wide(x)),
    "erf_inv": lambda x, **_: scipy.special.erfinv(_wide(x)),
    "max": lambda x, y, **_: np.maximum(x, y),
    "min": lambda x, y, **_: np.minimum(x, y),
    "mul": lambda x, y, **_: x * y,
    "neg": lambda x, **_: -x,
    "nextafter": lambda x, y, **_: np.nextafter(x, y),
    "or": lambda x, y, **_: x | y,
    "random_bits": _bits,
    "random_fold_in": _folded,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "shift_right_logical": lambda x, y, **_: x >> y,
    "sqrt": lambda x, **_: np.sqrt(x),
    "stop_gradient": lambda x, **_: x,
    "sub": lambda x, y, **_: x - y,
}
