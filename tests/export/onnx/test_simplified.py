"""What is written shorter in a graph, and what only looks as if it could be."""

import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir
import pytest

from flaxattn.export.onnx import largest_difference, to_onnx
from flaxattn.export.onnx.simplified import simplify
from tests.export.onnx.exports import MATRIX, Function, images, operations

COLUMNS = MATRIX[:3, 0]


def of_two_axes(x):
    """Shares as of a softmax, but of the largest and the sum of other rows."""
    powers = jnp.exp(x - x.max(axis=1)[:, :, None])
    return powers / powers.sum(axis=1)[:, :, None]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: of_two_axes(x.mean(axis=3)),
        lambda x: x[..., :1].max(axis=(0, 1, 2)) > 0,
    ],
    ids=["no softmax", "truths"],
)
def test_what_looks_alike(function):
    model, shape = Function(function), (2, 3, 3, 4)
    graph = to_onnx(model, {}, shape, layout="NCHW")
    assert largest_difference(graph, model, {}, images(shape), layout="NCHW") < 1e-4
    assert "Softmax" not in operations(graph)


@pytest.mark.parametrize(
    ("operation", "array"),
    [
        ("Max", np.zeros((4, 1, 1, 1), np.float32)),
        ("Max", np.full((1, 1, 1, 1, 1), -np.inf, np.float32)),
        ("Add", COLUMNS),
        ("Mul", COLUMNS.reshape(1, 1, 3, 1, 1)),
    ],
)
def test_what_must_stay_after_a_convolution(operation, array):
    """An array that makes the answer larger, or that is not of the channels."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "kernel"], ["maps"]),
        onnx.helper.make_node(operation, ["maps", "array"], ["y"]),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4, 2, 3]), ("y", None))
    )
    weights = {"kernel": MATRIX.T[..., None, None], "array": array}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "wide", [x], [y], tensors)
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)))
    simplify(model)
    assert [node.op_type for node in model.graph] == ["Conv", operation]
