"""Networks and layers as ONNX graphs, for runtimes that have no JAX."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax2onnx
import numpy as np
import onnx
import onnx_ir
from flax import linen as nn
from jax import Array
from jax import numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.extend.core import Literal as Constant
from jax.interpreters.partial_eval import dce_jaxpr_consts
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from flaxattn.errors import InputError, unknown
from flaxattn.export.channels_first import channels_first, maps_order
from flaxattn.export.evaluation import any_batch, evaluation, images_of
from flaxattn.export.onnx.operators import our_operators
from flaxattn.export.onnx.simplified import simplify

OPSET = 18
Layout = Literal["NHWC", "NCHW"]


def to_onnx(
    model: nn.Module,
    variables: Mapping[str, Any],
    input_shape: Sequence[int | None],
    *,
    layout: Layout = "NHWC",
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model in evaluation mode as an ONNX graph, which has passed onnx's checker.

    `input_shape` is (N, H, W, C) whatever the layout; None for N leaves it open. The input is named
    `images`, float32. Outputs are named as the model names them, or `output`. With layout="NCHW"
    images and maps go in and come out as (N, C, H, W), and nothing is transposed on the way but
    what the mechanism itself turns, such as the keys of self-attention. With "NHWC" images are
    transposed once at the start, and maps once at the end.

    Batch norms are folded into the convolutions before them. What a CPU or a TPU alone computes in
    a way of its own is written as the papers have it. The opset is 18 unless another is stated.

    Raises InputError for an unknown layout, an opset below 17, and for what ONNX or its converter
    jax2onnx cannot express, with what that is.
    """
    if layout not in ("NHWC", "NCHW"):
        raise unknown("layout", layout, ("NHWC", "NCHW"))
    if opset < 17:
        raise InputError(f"opset={opset} has not all that is needed: use 17 or above.")
    images = images_of(input_shape)
    with any_batch(input_shape):
        program, answer = jax.make_jaxpr(evaluation(model, variables), return_shape=True)(images)
        paths = [path for path, _ in jax.tree.leaves_with_path(answer)]
        names = [jax.tree_util.keystr(p, simple=True, separator="_") or "output" for p in paths]
        stored = _stored(program, images, layout)
        for one in (program, stored):
            _require_computed(one, names)
        try:
            return _graph(stored, names, opset)
        except (NotImplementedError, ValidationError, InferenceError) as error:
            reason = textwrap.shorten(str(error), 500)
            raise InputError(f"cannot be exported to ONNX: {reason}") from error


def _require_computed(program: ClosedJaxpr, names: list[str]) -> None:
    """Each output of a graph has a name of its own, and is no other array of it."""
    others = {*program.jaxpr.invars, *program.jaxpr.constvars}
    for name, answer in zip(names, program.jaxpr.outvars, strict=True):
        if isinstance(answer, Constant) or answer in others:
            raise InputError(
                f"output {name!r} is the input, a constant or another output: ONNX has no name for "
                "it, so the model must not return it."
            )
        others.add(answer)


def _stored(program: ClosedJaxpr, images: jax.ShapeDtypeStruct, layout: Layout) -> ClosedJaxpr:
    """The program as it is written into the graph: for maps, channels come first inside."""
    to_channels = maps_order(len(images.shape))
    if layout == "NCHW":
        shape = tuple(images.shape[axis] for axis in to_channels)
        images = jax.ShapeDtypeStruct(shape, images.dtype)
        return jax.make_jaxpr(channels_first(program))(images)

    def run(x: Array) -> list[Array]:
        answers = channels_first(program)(jnp.transpose(x, to_channels))
        return [jnp.transpose(y, np.argsort(maps_order(y.ndim)).tolist()) for y in answers]

    return jax.make_jaxpr(run)(images)


def _graph(program: ClosedJaxpr, names: list[str], opset: int) -> onnx.ModelProto:
    jaxpr, used, _ = dce_jaxpr_consts(program.jaxpr, [True] * len(names), instantiate=True)
    constants = (array for array, is_used in zip(program.consts, used, strict=True) if is_used)
    weights = {f"weight_{i}": np.asarray(array) for i, array in enumerate(constants)}

    def run(images: Array, *weights: Array) -> list[Array]:
        return jax.core.eval_jaxpr(jaxpr, weights, images)

    # As arguments the weights stay as they are; jax2onnx would write out constants that it spreads.
    given: list[Any] = [jaxpr.invars[0].aval, *weights.values()]
    with our_operators():
        model = jax2onnx.to_onnx(
            run,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given],
            opset=opset,
            input_names=["images", *weights],
            output_names=names,
            return_mode="ir",
        )
    for value in model.graph.inputs[1:]:
        model.graph.inputs.remove(value)
        value.const_value = onnx_ir.tensor(weights[value.name], name=value.name)
        model.graph.register_initializer(value)
    simplify(model)
    model.producer_name, model.producer_version = "flaxattn", None
    graph = onnx_ir.to_proto(model)
    onnx.checker.check_model(graph, full_check=True)
    return graph
