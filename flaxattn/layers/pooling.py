"""Pooling over maps and rescaling by gates, never in less than float32."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from flaxattn.errors import InputError, unknown
from flaxattn.layers.precision import at_least_float32


def average_pool(x: Array) -> Array:
    """Mean over the map: (N, H, W, C) -> (N, C), float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))


def max_pool(x: Array) -> Array:
    """Maximum over the map: (N, H, W, C) -> (N, C), float32 or wider.

    Where several positions hold the maximum its gradient goes to the first, as in torch's
    AdaptiveMaxPool2d; torch.amax shares it evenly between them.
    """
    return maximum(x, (1, 2))[:, 0, 0].astype(at_least_float32(x.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def maximum(x: Array, axes: int | Sequence[int]) -> Array:
    """Maximum over `axes`, kept with length one; its gradient goes to the first that holds it.

    Positions along several axes are counted row by row. A NaN is the maximum.

    The gradient of jnp.max compares x with the maximum. In a larger program XLA may compute x once
    for each side of that comparison and round differently. Then nothing is equal, and the gradient
    is 0 / 0. Here the position of the maximum is found with it, and no value is compared twice. On
    a TPU that also moves fewer bytes: the gradient does not read x.
    """
    return jnp.max(x, axis=_tuple(axes, x.ndim), keepdims=True)


@maximum.defjvp
def _maximum_jvp(
    axes: int | Sequence[int], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    axes = _tuple(axes, x.ndim)
    largest, first = _first_maximum(x, axes)
    return largest, _at(first, moved, axes)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_maximum(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The maximum, and the number of the position that holds it first."""
    return lax.platform_dependent(
        x, cpu=partial(_by_tournament, axes=axes), default=partial(_by_reduction, axes=axes)
    )


@_first_maximum.defjvp
def _first_maximum_jvp(
    axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Any]]:
    (x,), (moved,) = primals, tangents
    largest, first = _first_maximum(x, axes)
    of_integers = np.zeros(first.shape, jax.dtypes.float0)
    return (largest, first), (_at(first, moved, axes), of_integers)


def _at(position: Array, x: Array, axes: tuple[int, ...]) -> Array:
    """The values of x at these positions."""
    there = _positions(x.shape, axes) == position
    return jnp.sum(jnp.where(there, x, 0), axis=axes, keepdims=True)


def _positions(shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Numbers of the positions along `axes`, row by row."""
    *others, last = sorted(axes)
    numbers, step = lax.broadcasted_iota(jnp.int32, shape, last), shape[last]
    for axis in reversed(others):
        numbers = numbers + step * lax.broadcasted_iota(jnp.int32, shape, axis)
        step *= shape[axis]
    return numbers


def _by_reduction(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Value and position in one reduction, for platforms that fuse it: x is read once."""

    def first_larger(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, here), (y, there) = one, other
        wins = _beats(x, here, y, there)
        return lax.select(wins, x, y), lax.select(wins, here, there)

    least = np.array(-np.inf, x.dtype), np.array(np.iinfo(np.int32).max, np.int32)
    found = lax.reduce((x, _positions(x.shape, axes)), least, first_larger, axes)
    largest, first = (jnp.expand_dims(array, axes) for array in found)
    return largest, first


def _by_tournament(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """One half against the other, until one position is left.

    A CPU computes the reduction of pairs one by one, which takes eight times as long.
    """
    largest, position = jnp.max(x, axis=axes, keepdims=True), _positions(x.shape, axes)
    for axis in axes:
        while (size := x.shape[axis]) > 1:
            half = -(-size // 2)
            (one, other), (here, there) = (
                (
                    lax.slice_in_dim(a, 0, half, axis=axis),
                    lax.slice_in_dim(a, size - half, size, axis=axis),
                )
                for a in (x, position)
            )
            wins = _beats(other, there, one, here)
            # The same values; the other form takes four times as long, along either axis.
            along_channels = axis == x.ndim - 1
            x = lax.max(one, other) if along_channels else jnp.where(wins, other, one)
            position = jnp.where(wins, there, here)
    return largest, position


def _beats(x: Array, here: Array, y: Array, there: Array) -> Array:
    """Whether x is NaN, or larger than y, or as large and further in front."""
    return (x != x) | (x > y) | ((x == y) & (here < there))


def _tuple(axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes counted from the front."""
    return tuple(axis % ndim for axis in ((axes,) if isinstance(axes, int) else axes))


def variance_pool(x: Array) -> Array:
    """Unbiased variance over the map: (N, H, W, C) -> (N, C), float32 or wider.

    Taken about the mean, so a large mean costs no digits.

    Raises InputError for a map of one position, where torch's var returns NaN.
    """
    height, width = x.shape[1:3]
    if height * width < 2:
        raise InputError(
            f"a map of {height}x{width} has no variance over its positions: use one of at least 2."
        )
    mean = average_pool(x)
    centred = x.astype(mean.dtype) - mean[:, None, None, :]
    return jnp.sum(jnp.square(centred), axis=(1, 2)) / (height * width - 1)


def pool_by_each(
    x: Array, pools: Sequence[str], known: Mapping[str, Callable[[Array], Array]]
) -> list[Array]:
    """x pooled by each of `pools`, names of functions in `known`, in their order.

    Raises InputError for no pool at all and for unknown names.
    """
    if not pools:
        raise InputError(f"pools=() leaves nothing to pool: name some of {', '.join(known)}.")
    for pool in pools:
        if pool not in known:
            raise unknown("pool", pool, known)
    return [known[pool](x) for pool in pools]


def safe_sqrt(x: Array) -> Array:
    """The root; where x is 0 so is its gradient, which would be infinite."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def mean_of(pools: Sequence[Array]) -> Array:
    """The mean of equally shaped arrays."""
    return sum(pools[1:], start=pools[0]) / len(pools)


def rescale(x: Array, *gates: Array) -> Array:
    """x times each gate, multiplied in the gates' dtype, in x's own dtype.

    A gate is (N, C), one factor a channel, or anything that broadcasts against (N, H, W, C).
    """
    y = x.astype(gates[0].dtype)
    for gate in gates:
        y = y * (gate[:, None, None, :] if gate.ndim == 2 else gate)
    return y.astype(x.dtype)


def strip_pool(x: Array) -> tuple[Array, Array]:
    """Mean of each row and of each column of the map, float32 or wider.

    (N, H, W, C) -> (N, H, 1, C) and (N, 1, W, C).
    """
    wide = at_least_float32(x.dtype)
    rows = jnp.mean(x, axis=2, keepdims=True, dtype=wide)
    return rows, jnp.mean(x, axis=1, keepdims=True, dtype=wide)
