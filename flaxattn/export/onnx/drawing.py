"""An ONNX graph as text: a line for each operation, and rails for arrays that are still wanted."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

_SHOWN = ("axis", "equation", "perm", "group", "strides", "dilations")
_ONES = ("group", "strides", "dilations")  # not worth saying where they are one


def draw(graph: onnx.ModelProto) -> str:
    """The operations of a graph in order, each with what it takes from the weights and makes.

    A rail on the left is an array on its way from the operation that makes it, a dot, to the last
    one that takes it. Shapes are in the graph's layout.
    """
    graph = onnx.shape_inference.infer_shapes(graph)
    inner = graph.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in inner.initializer}
    shapes = {v.name: _shape(v) for v in (*inner.input, *inner.value_info, *inner.output)}
    taken = Counter(name for node in inner.node for name in node.input)
    taken.update(value.name for value in inner.output)

    rails = _Rails(taken)
    lines = [(rails.drawn((), [v.name]), v.name, shapes[v.name]) for v in inner.input]
    for node in inner.node:
        arrays = [name for name in node.input if name and name not in weights]
        made = ", ".join(shapes.get(name, "") for name in node.output)
        lines.append((rails.drawn(arrays, node.output), _operation(node, weights), made))
    computed = [v.name for v in inner.output if v.name not in weights]
    lines += [(rails.drawn([name], ()), name, "") for name in computed]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(
        f"{rail:<{widths[0]}}  {text:<{widths[1]}}  {made}".rstrip() for rail, text, made in lines
    )


class _Rails:
    """Which array is on which rail."""

    def __init__(self, taken: Counter[str]):
        self.taken = taken
        self.arrays: list[str | None] = []

    def drawn(self, inputs: Iterable[str], outputs: Sequence[str]) -> str:
        """The rails where one operation takes and makes these arrays."""
        before = list(self.arrays)
        at = [self.arrays.index(name) for name in dict.fromkeys(inputs)]
        self.taken.subtract(inputs)
        for column in at:
            if not self.taken[self.arrays[column] or ""]:
                self.arrays[column] = None
        ended = [column for column in at if self.arrays[column] is None]
        free = sorted(ended) + [c for c, name in enumerate(before) if name is None]
        made = []
        for name in outputs:
            if not free:
                free.append(len(self.arrays))
                self.arrays.append(None)
            made.append(free.pop(0))
            self.arrays[made[-1]] = name
        dot = made[0] if made else min(at)
        line = self._line(before, dot, at, made[1:])
        for column in made:
            if not self.taken[self.arrays[column] or ""]:
                self.arrays[column] = None
        return line

    def _line(self, before: list[str | None], dot: int, at: list[int], more: list[int]) -> str:
        involved = [dot, *at, *more]
        first, last = min(involved), max(involved)
        line = ""
        for column in range(len(self.arrays)):
            passing = column < len(before) and before[column] is not None
            within = first < column < last
            if column == dot:
                mark = "●"
            elif column in more:
                mark = "┐" if column == last else "┬"
            elif column in at and self.arrays[column] is None:
                mark = "┘" if column == last else "└" if column == first else "┴"
            elif column in at:
                mark = "┤" if column == last else "├" if column == first else "┼"
            elif passing:
                mark = "│"
            else:
                mark = "─" if within else " "
            line += mark + ("─" if first <= column < last else " ")
        return line.rstrip()


def _operation(node: onnx.NodeProto, weights: dict[str, np.ndarray]) -> str:
    """Its name, its numbers, and the shapes of its weights."""
    words = [node.op_type]
    for name in node.input[:2]:  # not the bias
        array = weights.get(name)
        if array is None:
            continue
        if array.dtype == np.int64:
            words += [str(array.tolist())] if node.op_type.startswith("Reduce") else []
        else:
            words.append(f"{array.item():g}" if array.size == 1 else _times(array.shape))
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        value = value.decode() if isinstance(value, bytes) else value
        plain = attribute.name in _ONES and not np.any(np.asarray(value) != 1)
        if attribute.name in _SHOWN and not plain:
            words.append(f"{attribute.name} {value}")
    return " ".join(words)


def _shape(value: onnx.ValueInfoProto) -> str:
    return _times(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _times(sizes: Iterable[int | str]) -> str:
    return " x ".join(map(str, sizes))
