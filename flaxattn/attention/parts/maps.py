"""What every layer is called with: a batch of maps."""

import jax.numpy as jnp
from jax import Array

from flaxattn.errors import InputError


def require_maps(x: Array, spatial: tuple[int, ...] = (2,)) -> None:
    """InputError unless x is (N, H, W, C) of a floating dtype.

    `spatial` holds the legal numbers of spatial axes, for layers that take sequences or videos too.
    """
    if x.ndim - 2 not in spatial:
        wanted = "(N, H, W, C)"
        if spatial != (2,):
            wanted = f"(N, *spatial, C) with {spatial[0]} to {spatial[-1]} spatial axes"
        raise InputError(
            f"x of shape {x.shape} is not {wanted}: give it its batch axis, x[None] for a single "
            f"map, and its channels last."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"x is of dtype {x.dtype}, and attention takes floating ones, such as float32 or "
            f"bfloat16: convert it, as by x.astype(jnp.float32) / 255 for the bytes of an image."
        )
