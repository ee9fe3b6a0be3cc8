"""Arrays with a note of the order in which their axes are stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array, lax

Order = tuple[int, ...]  # which axis of the program is stored first, second, ...
Shape = tuple[Any, ...]  # in the program's order; the batch may be a symbol
Params = dict[str, Any]  # of an operation, by JAX's names


@dataclass(frozen=True)
class Stored:
    """An array whose axis k is axis order[k] of the program's."""

    array: Array
    order: Order
    any_order: ClassVar[bool] = False

    @property
    def shape(self) -> Shape:
        return tuple(self.array.shape[self.order.index(axis)] for axis in range(self.array.ndim))

    def stored(self, order: Order) -> Array:
        """It in another order: a reshape where no two axes longer than one change places."""
        sizes = tuple(self.shape[axis] for axis in order)
        if not is_turned(self, order):
            return self.array if sizes == self.array.shape else lax.reshape(self.array, sizes)
        return lax.transpose(self.array, [self.order.index(axis) for axis in order])


@dataclass(frozen=True)
class Known:
    """An array that does not depend on the program's input."""

    array: Array | np.ndarray
    any_order: ClassVar[bool] = True

    @property
    def shape(self) -> Shape:
        return tuple(self.array.shape)

    @property
    def order(self) -> Order:
        return maps_order(self.array.ndim)

    def stored(self, order: Order) -> Array:
        with jax.ensure_compile_time_eval():
            return lax.transpose(self.array, order)


@dataclass(frozen=True)
class Spread:
    """A broadcast that is written when it is known in which order it is wanted."""

    value: "Value"
    shape: Shape
    axes: tuple[int, ...]  # where the value's axes go
    any_order: ClassVar[bool] = True

    @property
    def order(self) -> Order:
        return with_new_axes([self.axes[axis] for axis in self.value.order], len(self.shape))

    def stored(self, order: Order) -> Array:
        places = [order.index(axis) for axis in self.axes]
        array = self.value.stored(tuple(sorted(range(len(places)), key=places.__getitem__)))
        sizes = tuple(self.shape[axis] for axis in order)
        if [n for n in array.shape if n != 1] == [n for n in sizes if n != 1]:
            return lax.reshape(array, sizes)
        return lax.broadcast_in_dim(array, sizes, tuple(sorted(places)))


Value = Stored | Known | Spread


def as_given(array: Array) -> Stored:
    """An array that is stored in the program's order."""
    return Stored(array, tuple(range(array.ndim)))


def natural(value: Value) -> Order:
    """The program's order of a value's axes."""
    return tuple(range(len(value.shape)))


def maps_order(rank: int) -> Order:
    """The order (N, C, H, W) of an array (N, H, W, C); any other stays as it is."""
    return (0, 3, 1, 2) if rank == 4 else tuple(range(rank))


def common_order(values: Sequence[Value]) -> Order:
    """The order in which an operation on values of one rank, and on scalars, is done."""
    rank = max(len(value.shape) for value in values)
    widest = [value for value in values if len(value.shape) == rank]
    return min(widest, key=lambda value: value.any_order).order


def with_new_axes(kept: Sequence[int], rank: int) -> Order:
    """Axes of one position where they belong in a map; elsewhere last, unless they come first."""
    maps = maps_order(rank)
    if rank == 4 and [axis for axis in maps if axis in kept] == list(kept):
        return maps
    new = [axis for axis in range(rank) if axis not in kept]
    return (*(axis for axis in new if axis == 0), *kept, *(axis for axis in new if axis))


def without_gaps(axes: Sequence[int]) -> Order:
    """The order of what is left of an array when the axes that are not named have gone."""
    return tuple(sorted(axes).index(axis) for axis in axes)


def is_known(value: Value) -> bool:
    """Whether it does not depend on the program's input."""
    return isinstance(value, Known) or (isinstance(value, Spread) and is_known(value.value))


def is_turned(value: Value, order: Order) -> bool:
    """Whether it must be transposed to be stored in that order."""
    long = [axis for axis in value.order if value.shape[axis] != 1]
    return not value.any_order and [axis for axis in order if axis in long] != long


def size(shape: Shape, axes: Sequence[int]) -> Any:
    """How many elements these axes have."""
    return math.prod(shape[axis] for axis in axes)
