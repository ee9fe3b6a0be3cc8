"""ONNX graphs on this machine's processor."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from flax import linen as nn

from flaxattn.export.channels_first import maps_order
from flaxattn.export.evaluation import evaluation
from flaxattn.export.onnx.graph import Layout


def run(graph: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    """The graph's outputs in their order, by ONNX Runtime; images in the layout of the graph."""
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})


def largest_difference(
    graph: onnx.ModelProto,
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    layout: Layout = "NHWC",
) -> float:
    """How far the graph's outputs are from the model's at most, in shares of an output's largest.

    `images` are float32 (N, H, W, C), whatever the layout of the graph.
    """
    expected = jax.tree.leaves(jax.jit(evaluation(model, variables))(images))
    outputs = run(graph, _in_layout(images, layout))
    differences = [
        np.max(np.abs(output - wanted)) / max(np.max(np.abs(wanted)), np.finfo(np.float32).tiny)
        for output, wanted in zip(
            outputs, (_in_layout(np.asarray(y, float), layout) for y in expected), strict=True
        )
    ]
    return float(np.max(differences))


def _in_layout(array: np.ndarray, layout: Layout) -> np.ndarray:
    order = maps_order(array.ndim) if layout == "NCHW" else range(array.ndim)
    return np.ascontiguousarray(array.transpose(*order))
