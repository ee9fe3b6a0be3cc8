"""Models as ONNX graphs."""

from flaxattn.extras import require_extra

require_extra("export", doing="ONNX")

from flaxattn.export.onnx.drawing import draw
from flaxattn.export.onnx.graph import OPSET, Layout, to_onnx
from flaxattn.export.onnx.runtime import largest_difference, run

__all__ = ["OPSET", "Layout", "draw", "largest_difference", "run", "to_onnx"]
