"""ONNX graphs as text."""

import numpy as np
import onnx

from flaxattn.export.onnx import draw
from tests.export.onnx.exports import exported


def test_a_picture():
    assert draw(exported("se")[2]).splitlines() == [
        "●    images               batch x 16 x 8 x 12",
        "├─●  ReduceMean [2, 3]    batch x 16",
        "│ ●  Reshape              batch x 16 x 1 x 1",
        "│ ●  Conv 4 x 16 x 1 x 1  batch x 4 x 1 x 1",
        "│ ●  Relu                 batch x 4 x 1 x 1",
        "│ ●  Conv 16 x 4 x 1 x 1  batch x 16 x 1 x 1",
        "│ ●  Reshape              batch x 16",
        "│ ●  Sigmoid              batch x 16",
        "│ ●  Reshape              batch x 16 x 1 x 1",
        "●─┘  Mul                  batch x 16 x 8 x 12",
        "●    output",
    ]


def test_a_picture_of_many_rails():
    nodes = [
        onnx.helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1),
        onnx.helper.make_node("Add", ["a", "c"], ["d"]),
        onnx.helper.make_node("Mul", ["x", "d"], ["e"]),
        onnx.helper.make_node("Add", ["e", "b"], ["f"]),
        onnx.helper.make_node("Add", ["f", "d"], ["y"]),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, size])
        for name, size in (("x", 3), ("y", None))
    )
    picture = draw(onnx.helper.make_model(onnx.helper.make_graph(nodes, "rails", [x], [y])))
    assert [line.split("  ")[0] for line in picture.splitlines()] == [
        "●",
        "├─●─┬─┐",
        "│ ●─│─┘",
        "●─┤ │",
        "●─│─┘",
        "●─┘",
        "●",
    ]


def test_a_picture_of_what_nobody_takes():
    nodes = [
        onnx.helper.make_node("Split", ["x"], ["a", "unused"], axis=0, num_outputs=2),
        onnx.helper.make_node("Relu", ["a"], ["y"]),
    ]
    x, y, weight = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size])
        for name, size in (("x", 2), ("y", 1), ("weight", 1))
    )
    initializer = onnx.numpy_helper.from_array(np.ones(1, np.float32), "weight")
    graph = onnx.helper.make_graph(nodes, "unused", [x], [y, weight], [initializer])
    assert [line.split("  ")[0] for line in draw(onnx.helper.make_model(graph)).splitlines()] == [
        *("●", "●─┐", "●", "●")
    ]
