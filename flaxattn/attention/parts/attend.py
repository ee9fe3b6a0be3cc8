"""Weighted means of values by the likeness of queries and keys, all at once or in chunks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.errors import InputError
from flaxattn.layers.precision import at_least_float32


def attend(
    layer: nn.Module,
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float = 1.0,
    offsets: Sequence[Array] = (),
    normalise: Callable[[Array], Array] = jax.nn.softmax,
    query_chunk: int | None = None,
) -> Array:
    """sum_j a_ij v_j with a_i = normalise(scale * q_i . k_j) over j, and sows a for `layer`.

    Args:
        layer: the calling module; its map a, (N, ..., Q, K), goes to intermediates/attention.
        query, key, value: (N, ..., Q, d), (N, ..., K, d), (N, ..., K, c), as for several heads.
        scale: of the energies q_i . k_j.
        offsets: none, or what each query adds to the energies of the keys in a row of an H x W map,
            and in a column of it: (N, ..., Q, H) and (N, ..., Q, W), with K = H * W.
        normalise: makes weights of the energies along their last axis.
        query_chunk: queries whose weights exist at one time. None takes all Q of them, so memory
            grows with Q * K; an integer makes it grow with K * query_chunk, in the gradients too,
            which compute each chunk's weights anew. The values are the same, and it need not
            divide Q. Where the map is asked for, it takes its Q * K all the same.

    Answers (N, ..., Q, c) in float32 or wider. The products multiply in the arguments' dtype, their
    sums and `normalise` are float32 or wider.

    Raises InputError for a `query_chunk` below one.
    """
    if query_chunk is not None and query_chunk < 1:
        raise InputError(
            f"query_chunk={query_chunk} is below one: use 1 to H * W positions, or None for all at "
            f"once."
        )
    wide = at_least_float32(query.dtype)

    def weights(query: Array, *offsets: Array) -> Array:
        energy = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=wide)
        energy = energy * scale if scale != 1 else energy
        if offsets:
            by_row, by_column = offsets
            energy += (by_row[..., :, None] + by_column[..., None, :]).reshape(energy.shape)
        return normalise(energy)

    def mean(weights: Array) -> Array:
        return jnp.einsum(
            "...qk,...kc->...qc", weights.astype(value.dtype), value, preferred_element_type=wide
        )

    if query_chunk is None or layer.is_mutable_collection("intermediates"):
        attention = weights(query, *offsets)
        layer.sow("intermediates", "attention", attention)
        return mean(attention)

    @jax.checkpoint
    def one(of_query: tuple[Array, ...]) -> Array:
        return mean(weights(*(array[..., None, :] for array in of_query)))[..., 0, :]

    queries = tuple(jnp.moveaxis(array, -2, 0) for array in (query, *offsets))
    outputs = lax.map(one, queries, batch_size=min(query_chunk, query.shape[-2]))
    return jnp.moveaxis(outputs, 0, -2)
