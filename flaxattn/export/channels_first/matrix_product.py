"""Products of matrices whose axes are stored in some order."""

from typing import Any

from jax import lax
from jax.extend.core import Primitive

from flaxattn.export.channels_first.values import (
    Order,
    Stored,
    Value,
    is_known,
    is_turned,
    size,
    without_gaps,
)


def multiplied(primitive: Primitive, operands: list[Value], params: dict[str, Any]) -> list[Value]:
    """(M, K) times (K, N), with the operand first that saves transpositions.

    Where both ways take as many, the program's second operand comes first: attention's weights
    then have the keys before the queries, as their product with the values wants them.
    """
    contracted, batch = params["dimension_numbers"]
    free = [
        [axis for axis in operand.order if axis not in (*c, *b)]
        for operand, c, b in zip(operands, contracted, batch, strict=True)
    ]

    def as_matrices(first: int) -> dict[int, Order]:
        """The orders of both operands if that one is the first."""
        second = 1 - first
        place = operands[first].order.index
        pairs = zip(contracted[first], contracted[second], strict=True)
        summed = sorted(pairs, key=lambda pair: place(pair[0]))
        return {
            first: (*batch[first], *free[first], *(axis for axis, _ in summed)),
            second: (*batch[second], *(axis for _, axis in summed), *free[second]),
        }

    def turns(first: int) -> int:
        return sum(is_turned(operands[side], order) for side, order in as_matrices(first).items())

    first = min((1, 0), key=turns)
    orders = as_matrices(first)
    shapes = [operand.shape for operand in operands]
    merged = [size(shape, axes) for shape, axes in zip(shapes, free, strict=True)]
    avoidable = turns(first) and any(map(is_known, operands))
    if avoidable and (mixed := _mixed_channels(operands, params, free)):
        return [mixed]
    if avoidable or not all(isinstance(n, int) for n in merged):
        return [_unmerged(primitive, operands, params, free)]
    shared = tuple(shapes[0][axis] for axis in batch[0])
    summed = size(shapes[0], contracted[0])
    matrices = [
        lax.reshape(
            operands[side].stored(order),
            (*shared, *((rows, summed) if side == first else (summed, rows))),
        )
        for side, order in orders.items()
        for rows in [merged[side]]
    ]
    axes = tuple(range(len(shared)))
    numbers = (((len(axes) + 1,), (len(axes),)), (axes, axes))
    product = primitive.bind(*matrices, **params | {"dimension_numbers": numbers})

    start = (len(axes), len(axes) + len(free[0]))  # of each operand's axes in the program's answer
    order = (*axes, *(start[side] + axis for side in orders for axis in without_gaps(free[side])))
    sizes = (shapes[side][axis] for side in orders for axis in free[side])
    return [Stored(lax.reshape(product, (*shared, *sizes)), order)]


def _unmerged(
    primitive: Primitive, operands: list[Value], params: dict[str, Any], free: list[list[int]]
) -> Value:
    """The product of arrays as they are stored, with what is known last.

    So no map is turned for a matrix, and axes are not merged with a batch of open size.
    """
    contracted, batch = params["dimension_numbers"]
    sides = (1, 0) if is_known(operands[0]) else (0, 1)
    places = [operand.order.index for operand in operands]
    numbers = tuple(
        tuple(tuple(places[side](axis) for axis in axes[side]) for side in sides)
        for axes in (contracted, batch)
    )
    arrays = [operands[side].stored(operands[side].order) for side in sides]
    product = primitive.bind(*arrays, **params | {"dimension_numbers": numbers})
    shared = len(batch[0])
    start = (shared, shared + len(free[0]))
    after = (start[side] + axis for side in sides for axis in without_gaps(free[side]))
    return Stored(product, (*range(shared), *after))


def _mixed_channels(
    operands: list[Value], params: dict[str, Any], free: list[list[int]]
) -> Value | None:
    """A known matrix times the channels of a map, as a convolution of size one."""
    contracted, _ = params["dimension_numbers"]
    known = 0 if is_known(operands[0]) else 1
    x, matrix = operands[1 - known], operands[known]
    channels = contracted[1 - known]
    if len(matrix.shape) != 2 or len(channels) != 1 or x.order.index(channels[0]) != 1:
        return None
    kernel = matrix.stored((free[known][0], contracted[known][0]))
    positions = (1,) * (len(x.shape) - 2)
    y = lax.conv_general_dilated(
        *(x.stored(x.order), kernel.reshape(*kernel.shape, *positions), positions, "VALID"),
        preferred_element_type=params["preferred_element_type"],
    )
    new = 0 if known == 0 else len(free[1 - known])  # its place in the program's answer
    others = without_gaps(free[1 - known])
    shifted = [axis + (known == 0) for axis in others]
    return Stored(y, (shifted[0], new, *shifted[1:]))
