"""The graph that a person would have drawn instead of a converter's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
from onnxscript.optimizer import optimize
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, rewrite
from onnxscript.rewriter.rules import common


def simplify(model: onnx_ir.Model) -> None:
    """Rewrites the graph in place; it computes the same but for the rounding of folded weights."""
    rewrite(model, list(common.expand_before_binary_op_rules))
    for _ in range(2):
        optimize(model)
        rewrite(model)
        rewrite(model, list(common.expand_before_binary_op_rules))
    rewrite(model, RewriteRuleSet(RULES, commute=True))
    optimize(model)
    rewrite(model, [SOFTMAX])


def _array(value: onnx_ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _maximum(op: Any, x: Any, floor: Any) -> Any:
    return op.Max(x, floor)


def _is_zero(_: Any, floor: onnx_ir.Value, **__: Any) -> bool:
    array = _array(floor)
    return array is not None and not array.any()


def _is_lowest(_: Any, floor: onnx_ir.Value, **__: Any) -> bool:
    array = _array(floor)
    return array is not None and bool(np.all(array == -np.inf))


def _relu(op: Any, x: Any, **_: Any) -> Any:
    return op.Relu(x)


def _itself(op: Any, x: Any, **_: Any) -> Any:
    return op.Identity(x)


def _shares(op: Any, x: Any, axes: Any, summed: Any, by_row: Any, by_row_too: Any) -> Any:
    highest = op.Reshape(op.ReduceMax(x, axes, _allow_other_attributes=True), by_row)
    powers = op.Exp(op.Sub(x, highest))
    total = op.Reshape(op.ReduceSum(powers, summed, _allow_other_attributes=True), by_row_too)
    return op.Div(powers, total)


def _is_along_one_axis(_: Any, axes: onnx_ir.Value, summed: onnx_ir.Value, **__: Any) -> bool:
    of_highest, of_total = _array(axes), _array(summed)
    if of_highest is None or of_total is None or of_highest.size != 1:
        return False
    return bool(np.array_equal(of_highest, of_total))


def _softmax(op: Any, x: Any, axes: onnx_ir.Value, **_: Any) -> Any:
    return op.Softmax(x, axis=int(_array(axes).item()))


def _choice(op: Any, which: Any, then: Any, otherwise: Any) -> Any:
    return op.Where(which, then, otherwise)


def _is_of_truths(_: Any, then: onnx_ir.Value, otherwise: onnx_ir.Value, **__: Any) -> bool:
    return onnx_ir.DataType.BOOL in (then.dtype, otherwise.dtype)


def _logic(op: Any, which: Any, then: Any, otherwise: Any) -> Any:
    """ONNX Runtime chooses between numbers only."""
    return op.Or(op.And(which, then), op.And(op.Not(which), otherwise))


def _sum_over_count(op: Any, x: Any, axes: Any, count: Any) -> Any:
    total = op.ReduceSum(x, axes, _allow_other_attributes=True, _outputs=["total"])
    return op.Div(total, count)


def _is_its_count(
    _: Any, x: onnx_ir.Value, axes: onnx_ir.Value, count: onnx_ir.Value, **__: Any
) -> bool:
    summed, divisor = _array(axes), _array(count)
    if summed is None or divisor is None or x.shape is None:
        return False
    sizes = [x.shape[int(axis)] for axis in summed]
    return all(isinstance(n, int) for n in sizes) and bool((divisor == math.prod(sizes)).all())


def _mean(op: Any, x: Any, axes: Any, total: onnx_ir.Value, **_: Any) -> Any:
    return op.ReduceMean(x, axes, **total.producer().attributes)


def _after_conv(operation: str) -> Callable[..., Any]:
    def pattern(op: Any, x: Any, kernel: Any, value: Any) -> Any:
        options = {"_allow_other_inputs": True, "_allow_other_attributes": True}
        return getattr(op, operation)(op.Conv(x, kernel, **options, _outputs=["y"]), value)

    return pattern


def _is_per_channel(
    _: Any, kernel: onnx_ir.Value, value: onnx_ir.Value, y: onnx_ir.Value, **__: Any
) -> bool:
    weights, array = _array(kernel), _array(value)
    if weights is None or array is None or len(y.uses()) > 1:
        return False
    spatial = (1,) * (weights.ndim - 2)
    shape = array.shape[-weights.ndim + 1 :]
    return array.size in (1, len(weights)) and shape in (
        (len(weights), *spatial),
        (1, *spatial),
        (),
    )


def _into_conv(combine: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[..., Any]:
    """The kernel and the bias take up what is done to each channel after them."""

    def rewritten(op: Any, x: Any, kernel: Any, value: Any, y: onnx_ir.Value) -> Any:
        convolution = y.producer()
        weights = _array(kernel)
        bias = _array(convolution.inputs[2]) if len(convolution.inputs) > 2 else None
        bias = np.zeros(len(weights), weights.dtype) if bias is None else bias
        each = np.broadcast_to(_array(value).reshape(-1), bias.shape)
        weights, bias = combine(weights, bias, each)
        return op.Conv(
            x,
            op.initializer(onnx_ir.tensor(weights), f"{y.name}_kernel"),
            op.initializer(onnx_ir.tensor(bias), f"{y.name}_bias"),
            **convolution.attributes,
        )

    return rewritten


def _after_linear(op: Any, x: Any, kernel: Any, value: Any) -> Any:
    return op.Gemm(x, kernel, _allow_other_attributes=True, _outputs=["y"]) + value


def _is_per_feature(_: Any, value: onnx_ir.Value, y: onnx_ir.Value, **__: Any) -> bool:
    array = _array(value)
    return array is not None and array.size == y.shape[1] and len(y.uses()) == 1


def _into_linear(op: Any, x: Any, kernel: Any, value: Any, y: onnx_ir.Value) -> Any:
    bias = op.initializer(onnx_ir.tensor(_array(value).reshape(-1)), f"{y.name}_bias")
    return op.Gemm(x, kernel, bias, **dict(y.producer().attributes) | {"beta": 1.0})


def _times(weights: np.ndarray, each: np.ndarray) -> np.ndarray:
    return weights * each.reshape(-1, *(1,) * (weights.ndim - 1))


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
