"""What each operation does to the order in which arrays are stored."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive

from flaxattn.export.channels_first.matrix_product import multiplied
from flaxattn.export.channels_first.reshape import reshaped, transposed
from flaxattn.export.channels_first.values import (
    Known,
    Params,
    Spread,
    Stored,
    Value,
    as_given,
    common_order,
    natural,
    with_new_axes,
    without_gaps,
)

Rule = Callable[[Primitive, list[Value], Params], list[Value]]


def bound(primitive: Primitive, arrays: Sequence[Array], params: Params) -> list[Array]:
    """The operation on arrays as they are; always a list."""
    answers = primitive.bind(*arrays, **params)
    return answers if primitive.multiple_results else [answers]


def elementwise(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
    """All operands in the order of the first that has one; a broadcast stays small if it can."""
    (*others, widest) = sorted(operands, key=lambda operand: len(operand.shape))
    if isinstance(widest, Spread) and not any(operand.shape for operand in others):
        small = [widest.value if operand is widest else operand for operand in operands]
        (value,) = elementwise(primitive, small, params)
        return [Spread(value, widest.shape, widest.axes)]
    order = common_order(operands)
    arrays = [operand.stored(order if operand.shape else ()) for operand in operands]
    return [Stored(x, order) for x in bound(primitive, arrays, params)]


def reduced(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
    (operand,) = operands
    axes = tuple(sorted(operand.order.index(axis) for axis in params["axes"]))
    array = primitive.bind(operand.stored(operand.order), **{**params, "axes": axes})
    left = [axis for axis in operand.order if axis not in params["axes"]]
    return [Stored(array, without_gaps(left))]


def along_an_axis(
    primitive: Primitive, operands: list[Value], params: Params, *, word: str
) -> list[Value]:
    """What is done along the one axis that the parameter `word` names."""
    order = common_order(operands)
    arrays = [operand.stored(order) for operand in operands]
    params = params | {word: order.index(params[word])}
    return [Stored(x, order) for x in bound(primitive, arrays, params)]


def per_axis(
    primitive: Primitive, operands: list[Value], params: Params, *, words: Sequence[str]
) -> list[Value]:
    """What has parameters with an entry for each axis."""
    order = common_order(operands)
    arrays = [operand.stored(order if operand.shape else ()) for operand in operands]
    for word in words:
        if params[word] is not None:
            params = params | {word: tuple(params[word][axis] for axis in order)}
    return [Stored(x, order) for x in bound(primitive, arrays, params)]


def concatenated(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
    """Without the empty arrays that padding by nothing makes."""
    full = [operand for operand in operands if operand.shape[params["dimension"]] != 0]
    operands = full or operands[:1]
    if len(operands) == 1:
        return operands
    return along_an_axis(primitive, operands, params, word="dimension")


def same(_: Primitive, operands: list[Value], __: Params) -> list[Value]:
    return operands


def spread(_: Primitive, operands: list[Value], params: Params) -> list[Value]:
    (operand,) = operands
    return [Spread(operand, tuple(params["shape"]), tuple(params["broadcast_dimensions"]))]


def squeezed(_: Primitive, operands: list[Value], params: Params) -> list[Value]:
    (operand,) = operands
    order = operand.order
    gone = {axis % len(order) for axis in params["dimensions"]}
    array = lax.squeeze(operand.stored(order), [order.index(axis) for axis in gone])
    return [Stored(array, without_gaps([axis for axis in order if axis not in gone]))]


def stacked(_: Primitive, operands: list[Value], params: Params) -> list[Value]:
    order, axis = common_order(operands), params["axis"]
    new = with_new_axes([a + (a >= axis) for a in order], len(order) + 1)
    place = new.index(axis)
    arrays = [lax.expand_dims(operand.stored(order), [place]) for operand in operands]
    return [Stored(lax.concatenate(arrays, place), new)]


def convolved(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
    lhs, rhs, out = params["dimension_numbers"]
    as_stored = lax.ConvDimensionNumbers(*(tuple(range(len(spec))) for spec in (lhs, rhs, out)))
    x, kernel = operands[0].stored(tuple(lhs)), operands[1].stored(tuple(rhs))
    y = primitive.bind(x, kernel, **params | {"dimension_numbers": as_stored})
    return [Stored(y, tuple(out))]


def indexed(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
    """x[:, 0], which JAX writes as a gather where the batch is a symbol, and x[:, [3, 1, 2]]."""
    operand, indices = operands
    if isinstance(indices, Known):
        found = _part(primitive, operand, np.asarray(indices.array), params)
        found = found or _rows(primitive, operand, np.asarray(indices.array), params)
        if found is not None:
            return found
    arrays = [operand.stored(natural(operand)), indices.stored(natural(indices))]
    return [as_given(primitive.bind(*arrays, **params))]


def _part(
    primitive: Primitive, operand: Value, indices: np.ndarray, params: Params
) -> list[Value] | None:
    """One part of an array, if it lies inside."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if indices.ndim != 1:
        return None
    starts = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
    if not all(0 <= n <= operand.shape[axis] - sizes[axis] for axis, n in starts.items()):
        return None
    order = operand.order
    if sizes != operand.shape:
        begin = [starts.get(axis, 0) for axis in order]
        end = [starts.get(axis, 0) + sizes[axis] for axis in order]
        operand = Stored(lax.slice(operand.stored(order), begin, end), order)
    return squeezed(primitive, [operand], {"dimensions": numbers.collapsed_slice_dims})


def _rows(
    primitive: Primitive, operand: Value, indices: np.ndarray, params: Params
) -> list[Value] | None:
    """Positions along one axis, each by its index."""
    numbers, sizes, order = params["dimension_numbers"], params["slice_sizes"], operand.order
    (axis, *more) = numbers.start_index_map
    others = tuple(a for a in range(len(order)) if a != axis)
    alone = numbers.collapsed_slice_dims == (axis,) and numbers.offset_dims == others
    if more or not alone or indices.ndim != 2:
        return None
    place = order.index(axis)
    as_stored = numbers._replace(
        offset_dims=tuple(k for k in range(len(order)) if k != place),
        collapsed_slice_dims=(place,),
        start_index_map=(place,),
    )
    window = tuple(sizes[axis] for axis in order)
    params = params | {"dimension_numbers": as_stored, "slice_sizes": window}
    return [Stored(primitive.bind(operand.stored(order), indices, **params), order)]


OF_ELEMENTS = """
abs add add_any and atan2 cbrt ceil clamp convert_element_type cos div eq erf exp exp2 expm1 floor
ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow
reduce_precision rem round rsqrt select_n sign sin sqrt square sub tan tanh xor
"""
REDUCTIONS = """
argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
"""
WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

RULES: dict[str, Rule] = {
    **dict.fromkeys(OF_ELEMENTS.split(), elementwise),
    **dict.fromkeys(REDUCTIONS.split(), reduced),
    **dict.fromkeys(
        ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "split", "top_k"),
        partial(along_an_axis, word="axis"),
    ),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum"),
        partial(per_axis, words=WINDOW),
    ),
    "pad": partial(per_axis, words=("padding_config",)),
    "sort": partial(along_an_axis, word="dimension"),
    "slice": partial(per_axis, words=("start_indices", "limit_indices", "strides")),
    **dict.fromkeys(("copy", "optimization_barrier", "stop_gradient"), same),
    "broadcast_in_dim": spread,
    "concatenate": concatenated,
    "conv_general_dilated": convolved,
    "dot_general": multiplied,
    "gather": indexed,
    "reshape": reshaped,
    "squeeze": squeezed,
    "stack": stacked,
    "transpose": transposed,
}
