"""Spatial group-wise enhancement: each group of channels is gated where it is like its mean."""

from dataclasses import KW_ONLY
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.pooling import average_pool, rescale, safe_sqrt
from flaxattn.layers.precision import at_least_float32


class SpatialGroupEnhance(Mechanism):
    """Spatial group-wise enhancement: a map of gates for each group of channels.

    With x_i the channels of one group at position i, and g their mean over the map,

        c_i = g . x_i                               (Eq. 1, 2)
        t_i = (c_i - mean(c)) / (std(c) + 1e-5)     (Eq. 3)
        y_i = x_i * sigmoid(weight t_i + bias)      (Eq. 4, 5)

    std divides by HW - 1; where it is 0 its gradient is taken as 0, as torch does. weight starts
    at 0 and bias at 1, where y is sigmoid(1) x.

    Li, Hu, Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional
    Networks", arXiv 2019, arXiv:1905.09646.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider.
    Parameters: weight, bias (groups,). Sows the gates (N, H, W, groups).

    Fields:
        groups: the number of groups, a divisor of C.
        dtype: of the gates' arithmetic, if wider than float32.
        kernel_init: of weight.
        bias_init: of bias.

    Raises InputError for groups that do not divide C, and for maps of one position, which have no
    such deviation; torch then returns NaN.
    """

    groups: int = 64
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    role = "recalibrate"
    namings = {"official": (("weight", "weight", "1n11"), ("bias", "bias", "1n11"))}

    official = variant("The authors' SpatialGroupEnhance; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        _, height, width, features = x.shape
        if self.groups < 1 or features % self.groups:
            most = max(self.groups, 1)
            legal = max(n for n in range(1, features + 1) if features % n == 0 and n <= most)
            raise InputError(
                f"groups={self.groups} does not divide {features} channels: use a divisor, such as "
                f"{legal}."
            )
        if height * width < 2:
            raise InputError(
                f"a map of {height}x{width} has no standard deviation over its positions: apply "
                f"the layer to maps of at least two."
            )
        wide = at_least_float32(self.dtype or x.dtype)
        weight = self.param("weight", self.kernel_init, (self.groups,), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.groups,), self.param_dtype)

        mean = average_pool(x).astype(wide)
        likeness = lax.platform_dependent(
            x.astype(wide),
            mean,
            cpu=partial(_grouped_products, groups=self.groups),
            default=partial(_matrix_products, groups=self.groups),
        )
        centred = likeness - jnp.mean(likeness, axis=(1, 2), keepdims=True)
        normed = centred / (_deviation(centred) + 1e-5)
        row = (1, 1, 1, self.groups)
        gate = jax.nn.sigmoid(
            weight.astype(wide).reshape(row) * normed + bias.astype(wide).reshape(row)
        )
        self.sow("intermediates", "attention", gate)
        of_channels = lax.platform_dependent(
            gate,
            cpu=partial(jnp.repeat, repeats=features // self.groups, axis=-1),
            default=partial(_repeated_by_a_matrix, features=features),
        )
        return rescale(x, of_channels)


def _grouped_products(x: Array, mean: Array, groups: int) -> Array:
    """g . x_i of each group: (N, H, W, C), (N, C) -> (N, H, W, groups)."""
    products = x * mean[:, None, None, :]
    return jnp.sum(products.reshape(*x.shape[:-1], groups, -1), axis=-1)


def _matrix_products(x: Array, mean: Array, groups: int) -> Array:
    """The same, by matrices with a column for each group.

    A TPU pads an axis of a few channels to 128, so it is better not cut into groups.
    """
    by_group = mean[:, :, None] * _members(mean.shape[-1], groups, mean.dtype)[None]
    return jnp.einsum("nhwc,ncg->nhwg", x, by_group, precision=lax.Precision.HIGHEST)


def _repeated_by_a_matrix(gate: Array, features: int) -> Array:
    """The gate of each channel's group: (N, H, W, groups) -> (N, H, W, C)."""
    members = _members(features, gate.shape[-1], gate.dtype)
    return jnp.einsum("nhwg,cg->nhwc", gate, members, precision=lax.Precision.HIGHEST)


def _members(features: int, groups: int, dtype: DTypeLike) -> Array:
    """(C, groups): one where the channel belongs to the group, zero elsewhere."""
    return jnp.asarray(np.repeat(np.eye(groups), features // groups, axis=0), dtype)


def _deviation(centred: Array) -> Array:
    """The unbiased standard deviation over the map; where it is 0 so is its gradient, not NaN."""
    count = centred.shape[1] * centred.shape[2]
    variance = jnp.sum(jnp.square(centred), axis=(1, 2), keepdims=True) / (count - 1)
    return safe_sqrt(variance)
