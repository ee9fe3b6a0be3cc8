"""Pooling over maps and rescaling by gates, never in less than float32."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from flaxattn.errors import InputError, unknown
from flaxattn.precision import at_least_float32


def average_pool(x: Array) -> Array:
    """Mean over the map: (N, H, W, C) -> (N, C), float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))


def max_pool(x: Array) -> Array:
    """Maximum over the map: (N, H, W, C) -> (N, C), float32 or wider.

    Where several positions hold the maximum its gradient goes to the first, as in torch's
    AdaptiveMaxPool2d; torch.amax shares it evenly between them.
    """
    positions = x.reshape(x.shape[0], -1, x.shape[-1])
    return maximum(positions, 1)[:, 0].astype(at_least_float32(x.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def maximum(x: Array, axis: int) -> Array:
    """Maximum along `axis`, kept with length one; its gradient goes to the first that holds it.

    jnp.max asks for its gradient where x equals the maximum. In a larger program XLA may compute x
    once for each side of that question and round differently; then nothing is equal, and the
    gradient is 0 / 0. Here the position of the maximum is found, and no value is compared twice.
    """
    return jnp.max(x, axis=axis, keepdims=True)


@maximum.defjvp
def _maximum_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    holds = position == _first_of_largest(x, position, axis)
    return maximum(x, axis), jnp.sum(jnp.where(holds, moved, 0), axis=axis, keepdims=True)


def _first_of_largest(x: Array, position: Array, axis: int) -> Array:
    """Where the maximum along `axis` is first reached.

    A tournament of the one half against the other: jnp.argmax, one by one, takes eight times as
    long on a CPU.
    """
    while (size := x.shape[axis]) > 1:
        half = -(-size // 2)
        (one, other), (here, there) = (
            (
                lax.slice_in_dim(a, 0, half, axis=axis),
                lax.slice_in_dim(a, size - half, size, axis=axis),
            )
            for a in (x, position)
        )
        wins = (other > one) | ((other == one) & (there < here))
        x, position = jnp.where(wins, other, one), jnp.where(wins, there, here)
    return position


def variance_pool(x: Array) -> Array:
    """Unbiased variance over the map: (N, H, W, C) -> (N, C), float32 or wider.

    About the mean, so a large mean costs no digits.

    Raises InputError for a map of one position, where torch's var answers NaN.
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
    """What each of `pools`, by its name in `known`, answers for x, in their order.

    Raises InputError for a plain string, for no pool at all and for unknown ones.
    """
    if isinstance(pools, str):
        raise InputError(f"pools={pools!r} is a single name: pass a tuple, pools=({pools!r},).")
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
