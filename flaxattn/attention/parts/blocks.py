"""Maps cut into square blocks, with their surroundings or without, and put together again."""

import math

import jax.numpy as jnp
from jax import Array, lax

from flaxattn.errors import InputError


def require_divisor(field: str, size: int, height: int, width: int) -> None:
    """InputError unless blocks of `size`, the value of `field`, tile a map evenly."""
    if size < 1 or height % size or width % size:
        raise InputError(
            f"{field}={size} must divide both the height and the width of a map, and here that is "
            f"{height}x{width}: use a divisor of {math.gcd(height, width)}, or maps of other sizes."
        )


def cut(x: Array, size: int) -> Array:
    """(N, H, W, C) -> (N, blocks, size * size, C): blocks and positions each row by row."""
    batch, height, width, features = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, features)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size, features)


def join(blocks: Array, height: int, width: int) -> Array:
    """What `cut` made of (N, H, W, C), back."""
    batch, _, positions, features = blocks.shape
    size = math.isqrt(positions)
    x = blocks.reshape(batch, height // size, width // size, size, size, features)
    return x.swapaxes(2, 3).reshape(batch, height, width, features)


def cut_with_halo(x: Array, size: int, halo: int) -> Array:
    """(N, H, W, C) -> (N, blocks, (size + 2 * halo)^2, C): blocks with what lies around them.

    Beyond the map's edge lie zeros.
    """
    x = _with_halo(_with_halo(x, 1, size, halo), 3, size, halo)
    batch, _, window, *_, features = x.shape
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, features)


def block_means(x: Array, size: int) -> Array:
    """(N, H, W, C) -> (N, H / size, W / size, C): average pooling with strides of `size`.

    Raises InputError unless `size`, the strides of the calling layer, divides both sides of the
    map: torch would leave the rest out, and no shortcut beside such a layer then fits.
    """
    batch, height, width, features = x.shape
    require_divisor("strides", size, height, width)
    x = x.reshape(batch, height // size, size, width // size, size, features)
    return jnp.mean(x, axis=(2, 4))


def _with_halo(x: Array, axis: int, size: int, halo: int) -> Array:
    """Splits `axis` in two: blocks, and their positions with `halo` more on both sides.

    Made of whole neighbours, so that gradients are slices and sums too, and no scatter.
    """
    reach = -(-halo // size)
    count = x.shape[axis] // size
    pads = [(0, 0)] * x.ndim
    pads[axis] = (reach * size, reach * size)
    x = jnp.pad(x, pads)
    x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    neighbours = [lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(2 * reach + 1)]
    x = jnp.concatenate(neighbours, axis=axis + 1)
    start = reach * size - halo
    return lax.slice_in_dim(x, start, start + size + 2 * halo, axis=axis + 1)
