"""Channels shared out between the heads of an attention."""

import jax.numpy as jnp
from jax import Array

from flaxattn.errors import InputError
from flaxattn.layers.widths import make_divisible


def head_features(features: int, num_heads: int) -> int:
    """Channels of each head; InputError unless the heads share `features` evenly."""
    if features < 1:
        raise InputError(f"features={features} is below one: use 1 or more.")
    if num_heads < 1 or features % num_heads:
        raise InputError(
            f"num_heads={num_heads} cannot share {features} channels evenly: use a divisor of "
            f"{features}."
        )
    return features // num_heads


def key_features(features: int, num_heads: int, qk_ratio: float, given: int | None) -> int:
    """Channels of each head's queries and keys: `given`, or what `qk_ratio` makes of `features`.

    The latter as timm counts: make_divisible(features * qk_ratio, 8) divided by the heads, rounded
    down.

    Raises InputError where that leaves none.
    """
    if given is not None:
        if given < 1:
            raise InputError(f"key_features={given} is below one: use 1 or more, or None.")
        return given
    width = make_divisible(features * qk_ratio, 8)
    if qk_ratio <= 0 or width < num_heads:
        raise InputError(
            f"qk_ratio={qk_ratio} leaves none of {features} channels to the queries and keys of "
            f"{num_heads} heads: use a larger ratio, or fewer heads."
        )
    return width // num_heads


def split_heads(x: Array, num_heads: int) -> Array:
    """(N, ..., P, heads * d) -> (N, ..., heads, P, d): each head has a run of the channels."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(-2, -3)


def split_parts(x: Array, parts: int, num_heads: int) -> Array:
    """(N, ..., P, parts * heads * d) -> (parts, N, ..., heads, P, d): `split_heads` of each part.

    Parts have an axis of their own, so that their gradients are laid side by side in one pass.
    """
    x = x.reshape(*x.shape[:-1], parts, num_heads, -1)
    return jnp.moveaxis(x, -3, 0).swapaxes(-2, -3)


def merge_heads(x: Array) -> Array:
    """(N, ..., heads, P, d) -> (N, ..., P, heads * d)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)
