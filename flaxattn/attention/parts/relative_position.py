"""Learned relative positions along the height and the width of a map."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.precision import at_least_float32


class RelativePosition(nn.Module):
    """Energies of keys by their row and by their column, relative to the query's.

        e_ij = q_i . height_rel[row_j - row_i + H - 1] + q_i . width_rel[col_j - col_i + W - 1]

    Bello, Zoph, Vaswani, Shlens, Le, "Attention Augmented Convolutional Networks", ICCV 2019,
    arXiv:1904.09925.

    Takes queries (N, ..., h, w, d) and the size (H, W) of the map of keys, and returns the two
    terms, (N, ..., h * w, H) and (N, ..., h * w, W), in float32 or wider: `attend` adds them.
    Parameters: height_rel (2H - 1, d) and width_rel (2W - 1, d), from N(0, 1 / d).

    Raises InputError where the tables were made for keys of another size.
    """

    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, query: Array, keys: Sequence[int]) -> tuple[Array, Array]:
        *batch, height, width, depth = query.shape
        init = nn.initializers.normal(depth**-0.5)

        def energies(name: str, axis: str, queries: int, keys: int) -> Array:
            table = sized_param(self, name, init, (2 * keys - 1, depth), self.param_dtype)
            relative = np.arange(keys) - np.arange(queries)[:, None] + keys - 1
            energy = jnp.einsum(
                f"...hwd,{axis}kd->...hwk",
                query,
                table.astype(query.dtype)[relative],
                preferred_element_type=at_least_float32(query.dtype),
            )
            return energy.reshape(*batch, height * width, keys)

        rows, columns = keys
        return energies("height_rel", "h", height, rows), energies("width_rel", "w", width, columns)


def sized_param(
    layer: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], dtype: DTypeLike
) -> Any:
    """`layer.param` of a table whose rows follow from a map's size.

    Raises InputError where the table there is was made for another size.
    """
    require_size(layer, name, shape)
    return layer.param(name, init, shape, dtype)


def require_size(layer: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """InputError where `layer` has a parameter `name` that was made for a map of another size."""
    if layer.has_variable("params", name):
        there = jnp.shape(layer.get_variable("params", name))
        if there != shape:
            raise InputError(
                f"{name} is {there}, made for a map of another size, and this map needs {shape}: "
                f"use maps of the size that the layer was initialised with, or initialise it anew."
            )
