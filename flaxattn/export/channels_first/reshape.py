"""Reshapes and transpositions of arrays that are stored in another order."""

from jax import lax
from jax.extend.core import Primitive

from flaxattn.export.channels_first.values import (
    Params,
    Shape,
    Stored,
    Value,
    as_given,
    natural,
    size,
    with_new_axes,
)

Group = tuple[list[int], list[int]]


def transposed(_: Primitive, operands: list[Value], params: Params) -> list[Value]:
    """Nothing but another note of which axis is which."""
    (operand,) = operands
    permutation = tuple(params["permutation"])
    order = tuple(permutation.index(axis) for axis in operand.order)
    return [Stored(operand.stored(operand.order), order)]


def reshaped(primitive: Primitive, operands: list[Value], params: Params) -> list[Value]:
    """Axes that lie together are merged and split where they lie."""
    if params["dimensions"] is not None:
        operands = transposed(primitive, operands, {"permutation": params["dimensions"]})
    (operand,) = operands
    sizes = tuple(params["new_sizes"])
    if 0 in sizes:  # no element, in whatever order
        return [as_given(lax.reshape(operand.stored(operand.order), sizes))]
    groups = sorted(
        _groups(operand.shape, sizes), key=lambda group: min(map(operand.order.index, group[0]))
    )
    together = [axis for old, _ in groups for axis in old]
    before = with_new_axes(together, len(operand.shape)) if operand.any_order else operand.order
    if [axis for axis in before if axis in together] != together:
        return [as_given(lax.reshape(operand.stored(natural(operand)), sizes))]
    after = with_new_axes([axis for _, new in groups for axis in new], len(sizes))
    array = lax.reshape(operand.stored(before), tuple(sizes[axis] for axis in after))
    return [Stored(array, after)]


def _groups(old: Shape, new: Shape) -> list[Group]:
    """Which axes of `old` became which axes of `new`; axes of one position belong to none."""
    before = [axis for axis, n in enumerate(old) if n != 1]
    after = [axis for axis, n in enumerate(new) if n != 1]
    groups: list[Group] = []
    for end in (0, -1):
        while before and after and old[before[end]] == new[after[end]]:
            groups.append(([before.pop(end)], [after.pop(end)]))
    while before:
        merged, split = [before.pop(0)], [after.pop(0)]
        while (left := size(old, merged)) != (right := size(new, split)):
            if not (isinstance(left, int) and isinstance(right, int)):  # one is a symbol
                return [*groups, (merged + before, split + after)]
            if left < right:
                merged.append(before.pop(0))
            else:
                split.append(after.pop(0))
        groups.append((merged, split))
    return groups
