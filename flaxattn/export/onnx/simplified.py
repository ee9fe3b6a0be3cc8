"""The graph that a person would have drawn instead of a converter's.

Each rule is a pattern, what its parts must be, and what stands there instead; see onnxscript's
rewriter. Arrays of the graph are called by the names that the pattern gives them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir.convenience import get_const_tensor
from onnxscript.optimizer import optimize
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, rewrite
from onnxscript.rewriter.rules import common


def simplify(model: onnx_ir.Model) -> None:
    """Rewrites the graph in place; it computes the same but for the rounding of folded weights."""
    spreads = list(common.expand_before_binary_op_rules)
    rewrite(model, spreads)
    for _ in range(2):
        optimize(model)
        rewrite(model)
        rewrite(model, spreads)
    rewrite(model, RewriteRuleSet(RULES, commute=True))
    optimize(model)
    rewrite(model, [SOFTMAX])


def _is_known(*values: Any) -> bool:
    return all(value is not None and get_const_tensor(value) is not None for value in values)


def _array(value: Any) -> np.ndarray:
    tensor = get_const_tensor(value)
    assert tensor is not None, "the rule has asked _is_known"
    return tensor.numpy()


def _widens(array: np.ndarray, x: Any) -> bool:
    """Whether an operation on both may be larger than x."""
    if x.shape is None or array.ndim > len(x.shape):
        return True
    sizes = tuple(x.shape)[len(x.shape) - array.ndim :]
    return any(n not in (1, size) for n, size in zip(array.shape, sizes, strict=True))


def _maximum(op: Any, x: Any, floor: Any) -> Any:
    return op.Max(x, floor)


def _is_zero(_: Any, x: Any, floor: Any) -> bool:
    return _is_known(floor) and not _array(floor).any() and not _widens(_array(floor), x)


def _is_lowest(_: Any, x: Any, floor: Any) -> bool:
    if not _is_known(floor) or _widens(_array(floor), x):
        return False
    return bool((_array(floor) == -np.inf).all())


def _relu(op: Any, x: Any, **_: Any) -> Any:
    return op.Relu(x)


def _itself(op: Any, x: Any, **_: Any) -> Any:
    return op.Identity(x)


def _shares(op: Any, x: Any, axes: Any, summed: Any, by_row: Any, by_row_too: Any) -> Any:
    largest = op.ReduceMax(x, axes, _allow_other_attributes=True)
    highest = op.Reshape(largest, by_row, _outputs=["highest"])
    powers = op.Exp(op.Sub(x, highest))
    total = op.ReduceSum(powers, summed, _allow_other_attributes=True)
    total = op.Reshape(total, by_row_too, _outputs=["total"])
    return op.Div(powers, total)


def _is_along_one_axis(
    _: Any, x: Any, axes: Any, summed: Any, highest: Any, total: Any, **__: Any
) -> bool:
    if not _is_known(axes, summed) or None in (x.shape, highest.shape, total.shape):
        return False
    if _array(axes).size != 1 or not np.array_equal(_array(axes), _array(summed)):
        return False
    kept = list(x.shape)
    kept[_array(axes).item()] = 1
    return list(highest.shape) == kept == list(total.shape)


def _softmax(op: Any, x: Any, axes: Any, **_: Any) -> Any:
    return op.Softmax(x, axis=_array(axes).item())


def _choice(op: Any, which: Any, then: Any, otherwise: Any) -> Any:
    return op.Where(which, then, otherwise)


def _is_of_truths(_: Any, then: Any, otherwise: Any, **__: Any) -> bool:
    return onnx_ir.DataType.BOOL in (then.dtype, otherwise.dtype)


def _logic(op: Any, which: Any, then: Any, otherwise: Any) -> Any:
    """ONNX Runtime chooses between numbers only."""
    return op.Or(op.And(which, then), op.And(op.Not(which), otherwise))


def _sum_over_count(op: Any, x: Any, axes: Any, count: Any) -> Any:
    total = op.ReduceSum(x, axes, _allow_other_attributes=True, _outputs=["total"])
    return op.Div(total, count)


def _is_its_count(_: Any, x: Any, axes: Any, count: Any, total: Any, **__: Any) -> bool:
    if not _is_known(axes, count) or x.shape is None or _widens(_array(count), total):
        return False
    sizes = [x.shape[int(axis)] for axis in _array(axes)]
    if not all(isinstance(n, int) for n in sizes):
        return False
    return bool((_array(count) == math.prod(sizes)).all())


def _mean(op: Any, x: Any, axes: Any, total: Any, **_: Any) -> Any:
    return op.ReduceMean(x, axes, **total.producer().attributes)


def _after_conv(operation: str) -> Callable[..., Any]:
    def pattern(op: Any, x: Any, kernel: Any, value: Any) -> Any:
        options = {"_allow_other_inputs": True, "_allow_other_attributes": True}
        return getattr(op, operation)(op.Conv(x, kernel, **options, _outputs=["y"]), value)

    return pattern


def _is_per_channel(_: Any, kernel: Any, value: Any, y: Any, **__: Any) -> bool:
    if not _is_known(value, *y.producer().inputs[1:]) or len(y.uses()) > 1:
        return False
    weights, array = _array(kernel), _array(value)
    if _widens(array, y):
        return False
    each = (len(weights), *(1,) * (weights.ndim - 2))
    return array.size == 1 or array.shape in (each, (1, *each))


def _into_conv(combine: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[..., Any]:
    """The kernel and the bias take up what is done to each channel after them."""

    def rewritten(op: Any, x: Any, kernel: Any, value: Any, y: Any) -> Any:
        convolution = y.producer()
        weights = _array(kernel)
        bias = np.zeros(len(weights), weights.dtype)
        for given in convolution.inputs[2:]:
            bias = _array(given)
        each = np.broadcast_to(_array(value).reshape(-1), bias.shape)
        weights, bias = combine(weights, bias, each)
        return op.Conv(
            x,
            op.initializer(onnx_ir.tensor(weights), f"{y.name}_kernel"),
            op.initializer(onnx_ir.tensor(bias), f"{y.name}_bias"),
            **convolution.attributes,
        )

    return rewritten


def _times(weights: np.ndarray, each: np.ndarray) -> np.ndarray:
    return weights * each.reshape(-1, *(1,) * (weights.ndim - 1))


def _after_linear(op: Any, x: Any, kernel: Any, value: Any) -> Any:
    return op.Gemm(x, kernel, _allow_other_attributes=True, _outputs=["y"]) + value


def _is_per_feature(_: Any, value: Any, y: Any, **__: Any) -> bool:
    if not _is_known(value) or len(y.uses()) > 1:
        return False
    return _array(value).shape in ((y.shape[1],), (1, y.shape[1]))


def _into_linear(op: Any, x: Any, kernel: Any, value: Any, y: Any) -> Any:
    bias = op.initializer(onnx_ir.tensor(_array(value).reshape(-1)), f"{y.name}_bias")
    return op.Gemm(x, kernel, bias, **dict(y.producer().attributes) | {"beta": 1.0})


COMBINED: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "Add": lambda weights, bias, each: (weights, bias + each),
    "Sub": lambda weights, bias, each: (weights, bias - each),
    "Mul": lambda weights, bias, each: (_times(weights, each), bias * each),
}
SOFTMAX = RewriteRule(_shares, _softmax, _is_along_one_axis)
RULES = [
    RewriteRule(_maximum, _relu, _is_zero),
    RewriteRule(_maximum, _itself, _is_lowest),
    RewriteRule(_choice, _logic, _is_of_truths),
    RewriteRule(_sum_over_count, _mean, _is_its_count),
    RewriteRule(_after_linear, _into_linear, _is_per_feature),
    *(
        RewriteRule(_after_conv(operation), _into_conv(combine), _is_per_channel)
        for operation, combine in COMBINED.items()
    ),
]
