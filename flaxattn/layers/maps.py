"""What a layer or a network is called with: floating maps, channels last."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.errors import InputError, shown


def require_maps(x: Any, name: str = "x", *, axes: Collection[int] = (4,)) -> None:
    """InputError unless `x`, called `name`, is a floating array (N, H, W, C).

    `axes` holds the legal numbers of axes, for layers that take sequences or videos too.
    """
    if not isinstance(x, jax.Array | np.ndarray):
        raise InputError(f"{name}={shown(x)} must be an array of JAX or NumPy: use np.asarray.")
    if x.ndim not in axes:
        wanted = "(N, H, W, C)"
        if len(axes) > 1:
            wanted = f"(N, *spatial, C) with {min(axes) - 2} to {max(axes) - 2} spatial axes"
        raise InputError(
            f"{name} of shape {x.shape} is not {wanted}: give it its batch axis, {name}[None] for "
            f"a single one, and its channels last."
        )
    if 0 in x.shape:
        raise InputError(f"{name} of shape {x.shape} is empty: give it one of each axis or more.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"{name} is of dtype {x.dtype}, and floating ones are needed, such as float32 or "
            f"bfloat16: convert it, as by {name}.astype(jnp.float32) / 255 for an image's bytes."
        )
