"""Convolutions as a TPU computes them fastest; the same function and gradients as XLA's own.

A TPU multiplies matrices of 128 columns and more. Between a few channels, such as the two maps that
spatial gates pool, it has next to nothing to multiply, and its compiler searches for a minute for a
way. `benchmarks/tpu.py` counts the layers that have such a convolution.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from flaxattn.layers.cpu_conv import Geometry, native

MOST_CHANNELS = 4
# The short axis times the channels. Beyond this the matrices are mostly zeros.
MOST_COLUMNS = 1024


def formulation(
    x: Array, kernel: Array, geometry: Geometry
) -> Callable[[Array, Array, Geometry, lax.PrecisionLike], Array] | None:
    """The function that convolves these two fastest, or None where it is `cpu_conv.native`."""
    if geometry.groups > 1:
        return None
    if math.prod(kernel.shape[:-1]) == 1 and not any(geometry.padding):
        return outer
    few = max(kernel.shape[-2:]) <= MOST_CHANNELS
    if x.ndim != 4 or not few or min(kernel.shape[:2]) == 1:
        return None
    return banded if min(x.shape[1:3]) * max(kernel.shape[-2:]) <= MOST_COLUMNS else None


def outer(x: Array, kernel: Array, geometry: Geometry, precision: lax.PrecisionLike) -> Array:
    """A 1x1 convolution of one channel: single products, which need not be stored to be read."""
    del precision  # nothing is multiplied in less than x's own
    x = x[(slice(None), *(slice(None, None, step) for step in geometry.strides))]
    return x * kernel.reshape((1,) * (x.ndim - 1) + (-1,))


def banded(x: Array, kernel: Array, geometry: Geometry, precision: lax.PrecisionLike) -> Array:
    """A convolution of a map (N, H, W, C) along its long axis, the short one among the channels.

    Each row of the kernel becomes a matrix between all channels of all columns, with the weights
    in bands about its diagonal and zeros elsewhere. An infinite number in x therefore makes NaN of
    whole rows of the output, not only of the positions within the kernel's reach.
    """
    height, width = x.shape[1:3]
    if height < width:
        strides, padding, dilation, _ = geometry
        turned = Geometry(strides[::-1], padding[::-1], dilation[::-1])
        y = banded(x.swapaxes(1, 2), kernel.swapaxes(0, 1), turned, precision)
        return y.swapaxes(1, 2)
    (down, step), (above, left), (apart, spread), _ = geometry
    channels, features = kernel.shape[-2:]
    outputs = (width + 2 * left - spread * (kernel.shape[1] - 1) - 1) // step + 1
    tap, read, output = jnp.indices((kernel.shape[1], width, outputs), sparse=True)
    is_read = (read == step * output + spread * tap - left).astype(kernel.dtype)
    matrices = jnp.einsum("ijcf,jvw->ivcwf", kernel, is_read, precision=lax.Precision.HIGHEST)
    y = native(
        x.reshape(*x.shape[:2], -1),
        matrices.reshape(-1, width * channels, outputs * features),
        Geometry((down,), (above,), (apart,)),
        precision,
    )
    return y.reshape(*y.shape[:2], outputs, features)
