"""Products of matrices whose axes are stored in some order."""

from jax import lax
from jax.extend.core import Primitive

from flaxattn.export.channels_first.values import (
    Order,
    Params,
    Stored,
    Value,
    is_known,
    is_turned,
    size,
    without_gaps,
)


def multiplied(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
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
    second = 1 - first
    rows = lax.reshape(operands[first].stored(orders[first]), (*shared, merged[first], summed))
    columns = lax.reshape(
        operands[second].stored(orders[second]), (*shared, summed, merged[second])
    )
    axes = tuple(range(len(shared)))
    numbers = (((len(axes) + 1,), (len(axes),)), (axes, axes))
    product = primitive.bind(rows, columns, **params | {"dimension_numbers": numbers})
    sizes = (shapes[side][axis] for side in (first, second) for axis in free[side])
    order = _order_of_product((first, second), len(shared), free)
    return [Stored(lax.reshape(product, (*shared, *sizes)), order)]


def _order_of_product(sides: tuple[int, int], shared: int, free: list[list[int]]) -> Order:
    """Which axis of the program's answer is which where the operands come in the order of `sides`.

    The answer has the shared axes first, then the free ones of the program's first operand.
    """
    start = (shared, shared + len(free[0]))
    own = (start[side] + axis for side in sides for axis in without_gaps(free[side]))
    return (*range(shared), *own)


def _unmerged(
    primitive: Primitive, operands: list[Value], params: Params, free: list[list[int]]
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
    return Stored(product, _order_of_product(sides, len(batch[0]), free))


def _mixed_channels(operands: list[Value], params: Params, free: list[list[int]]) -> Value | None:
    """A known matrix times the channels of a map, as a convolution of size one."""
    contracted, batch = params["dimension_numbers"]
    known = 0 if is_known(operands[0]) else 1
    x, matrix = operands[1 - known], operands[known]
    channels = contracted[1 - known]
    if batch[known] or len(matrix.shape) != 2 or len(channels) != 1:
        return None
    if x.order.index(channels[0]) != 1:
        return None
    kernel = matrix.stored((free[known][0], contracted[known][0]))
    positions = (1,) * (len(x.shape) - 2)
    y = lax.conv_general_dilated(
        *(x.stored(x.order), kernel.reshape(*kernel.shape, *positions), positions, "VALID"),
        preferred_element_type=params["preferred_element_type"],
    )
    (count, *others, new) = _order_of_product((1 - known, known), 0, free)
    return Stored(y, (count, new, *others))
