"""Convolution by kernels that each sample mixes for itself from a few shared ones."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.layers.conv import (
    Initializer,
    per_axis,
    require_fit,
    require_groups,
    require_odd,
)
from flaxattn.layers.cpu_conv import Geometry, native
from flaxattn.layers.precision import at_least_float32


def mixed_convolution(layer: Any, x: Array, weights: Array, *, padding: int | None = None) -> Array:
    """x_n convolved with sum_k weights_nk kernels_k, plus sum_k weights_nk biases_k.

    (N, H, W, C) -> (N, H', W', features) in x's dtype.

    Args:
        layer: the calling one, whose fields features, kernel_size, strides, dilation, groups,
            use_bias, dtype, param_dtype, kernel_init and bias_init are the convolution's. It gets
            the parameters kernels (K, k, k, C / groups, features) and biases (K, features); each
            of the K is initialised as a kernel by itself.
        x: the input.
        weights: (N, K), in float32 or wider. The kernels are mixed in its dtype.
        padding: zeros on each side; None for as many as keep the size at stride 1, as in `Conv`.

    A CPU multiplies the map, shifted by each of the k * k taps of the kernel, with the samples' own
    matrices and adds the products up: of the five ways measured (8 maps of 28x28, 64 channels, two
    cores, float32; forward / with gradients, in ms) the best over all numbers of groups:

        | groups | taps      | grouped convolution | K convolutions | scan over n | patches  |
        |--------|-----------|---------------------|----------------|-------------|----------|
        | 1      | 13 / 28   | 18 / 328            | 21 / 45        | 5.6 / 217   | 12 / 25  |
        | 4      | 5.3 / 15  | 8.3 / 1192          | 16 / 239       | 6.1 / 94    | 9.4 / 33 |
        | 64     | 0.3 / 3.9 | 20 / 61             | 13 / 2195      | 11 / 184    | 3.3 / 20 |

    Elsewhere the samples are groups of one convolution, which stores no sum of products.
    """
    for field in ("features", "kernel_size", "strides", "dilation", "groups"):
        per_axis(layer, field, 1, least=1)
    require_groups(layer.groups, x.shape[-1], layer.features)
    size = layer.kernel_size
    if padding is None:
        margin = layer.dilation * (require_odd(size) - 1) // 2
    else:
        (margin,) = per_axis(layer, "padding", 1, least=0)
    require_fit(x.shape[1:3], (size,) * 2, (margin,) * 2, (layer.dilation,) * 2)
    count = weights.shape[-1]
    dtype = layer.dtype or x.dtype
    weights = weights.astype(jnp.promote_types(weights.dtype, at_least_float32(dtype)))

    # A sum that is then rounded to bfloat16 needs no products more exact than that, for which a TPU
    # would store the kernels of all samples in three parts.
    precision = lax.Precision.HIGHEST if at_least_float32(dtype) == dtype else None

    def mixed(name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
        def each(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            keys = jax.random.split(key, count)
            return jax.vmap(lambda key: init(key, shape[1:], dtype))(keys)

        shared = layer.param(name, each, (count, *shape), layer.param_dtype)
        return jnp.tensordot(weights, shared.astype(weights.dtype), axes=1, precision=precision)

    shape = (size, size, x.shape[-1] // layer.groups, layer.features)
    kernels = mixed("kernels", layer.kernel_init, shape).astype(dtype)
    geometry = Geometry((layer.strides,) * 2, (margin,) * 2, (layer.dilation,) * 2, layer.groups)
    y = lax.platform_dependent(
        x.astype(dtype),
        kernels,
        cpu=partial(by_taps, geometry=geometry),
        default=partial(by_groups, geometry=geometry),
    )
    if layer.use_bias:
        biases = mixed("biases", layer.bias_init, (layer.features,))
        y = y + biases.astype(y.dtype)[:, None, None, :]
    return y.astype(x.dtype)


def by_groups(x: Array, kernels: Array, *, geometry: Geometry) -> Array:
    """x_n convolved with kernels_n, (N, k, k, C / groups, features)."""
    return jax.vmap(lambda x, kernel: native(x[None], kernel, geometry, None)[0])(x, kernels)


@partial(jax.jit, static_argnames="geometry")
def by_taps(x: Array, kernels: Array, *, geometry: Geometry) -> Array:
    """The same as a sum over the taps, in float32 or wider."""
    (strides, _), (margin, _), (dilation, _), groups = geometry
    wide = at_least_float32(x.dtype)
    _, size, _, inner, features = kernels.shape
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    reach = dilation * (size - 1)
    height, width = ((extent - reach - 1) // strides + 1 for extent in padded.shape[1:3])

    def shifted(row: int, column: int) -> Array:
        top, left = row * dilation, column * dilation
        below, right = top + (height - 1) * strides + 1, left + (width - 1) * strides + 1
        return padded[:, top:below:strides, left:right:strides]

    def product(part: Array, tap: Array) -> Array:
        if inner == 1 and features == groups:
            return part.astype(wide) * tap.reshape(-1, 1, 1, features).astype(wide)
        y = jnp.einsum(
            "nhwgi,nigo->nhwgo",
            part.reshape(*part.shape[:-1], groups, inner),
            tap.reshape(-1, inner, groups, features // groups),
            preferred_element_type=wide,
        )
        return y.reshape(*part.shape[:-1], features)

    y = jnp.zeros((x.shape[0], height, width, features), wide)
    for row in range(size):
        for column in range(size):
            y = y + product(shifted(row, column), kernels[:, row, column])
    return y.astype(x.dtype)
