"""Pooling over maps and rescaling by gates, never in less than float32."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from jax import Array

from flaxattn.errors import InputError, unknown
from flaxattn.precision import at_least_float32


def average_pool(x: Array) -> Array:
    """Mean over the map: (N, H, W, C) -> (N, C), float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))


def max_pool(x: Array) -> Array:
    """Maximum over the map: (N, H, W, C) -> (N, C), float32 or wider.

    Where several positions hold the maximum its gradient is shared evenly between them, as in
    torch.amax; torch's AdaptiveMaxPool2d gives it all to one of them.
    """
    return jnp.max(x, axis=(1, 2)).astype(at_least_float32(x.dtype))


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


def rescale(x: Array, *gates: Array) -> Array:
    """x times each gate, multiplied in the gates' dtype, in x's own dtype.

    A gate is (N, C), one factor a channel, or anything that broadcasts against (N, H, W, C).
    """
    y = x.astype(gates[0].dtype)
    for gate in gates:
        y = y * (gate[:, None, None, :] if gate.ndim == 2 else gate)
    return y.astype(x.dtype)
