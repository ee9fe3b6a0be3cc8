"""ONNX graphs: ONNX Runtime's answers to them, what stands in them, and their pictures."""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir
import pytest
from flax import linen as nn
from jax import lax
from jax2onnx.plugins.plugin_system import PLUGIN_REGISTRY

from flaxattn import InputError, create_attention
from flaxattn.__main__ import main
from flaxattn.export.onnx import draw, largest_difference, run, to_onnx
from flaxattn.export.onnx.article import article_modules
from flaxattn.export.onnx.operators import OURS
from flaxattn.export.onnx.simplified import simplify
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.layers.initialise import initialise
from flaxattn.models import ResNet, create_model
from flaxattn.models.segmentation import SEGMENTERS
from tests.attention import parity
from tests.attention.test_parity import CASES
from tests.models.detection.test_faster_rcnn import small, small_variables
from tests.models.segmentation.test_segmenter import tiny

SHAPE = (2, 8, 12, 16)
QUICK: dict[str, dict] = {
    "se": {"reduction": 4},
    "cbam": {},
    "sk": {"features": 16, "groups": 4},
    "eca": {},
    "self_attention": {},
    "coordinate": {"reduction": 4},
}
# How many arrays are turned with channels first, where it is not 0: matrices of positions or of
# blocks of positions, and axes that a mechanism exchanges.
TRANSPOSED = {
    **dict.fromkeys(("danet_position", "gsop", "multi_head", "non_local", "self_attention"), 1),
    **dict.fromkeys(("cond_conv", "danet_channel", "double_attention", "dynamic_conv"), 2),
    **dict.fromkeys(("shuffle", "sge", "simplified_psa", "split_attention", "triplet"), 2),
    **{
        "bat": 4,
        "botnet": 4,
        "criss_cross": 20,
        "gather_excite": 3,
        "generalized": 6,
        "halo": 11,
        "lambda": 5,
    },
    **{"psanet": 9, "window": 6},
}
# The number of images is there the number of a convolution's groups.
OF_ONE_BATCH = ("cond_conv", "dynamic_conv")


def images(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def drawn(model, shape):
    """Variables without zeros and ones, so that nothing is without effect."""
    rng = np.random.default_rng(0)
    tree = abstract_variables(model, shape)

    def values(leaf):
        width = 1 / math.sqrt(max(math.prod(leaf.shape[:-1]), 1))
        return jnp.asarray(rng.uniform(0.3, 1, leaf.shape) * width, leaf.dtype)

    return jax.tree.map(values, tree)


@cache
def exported(name, *, layout="NCHW"):
    layer = create_attention(name, **QUICK[name])
    variables = drawn(layer, SHAPE)
    return layer, variables, to_onnx(layer, variables, (None, *SHAPE[1:]), layout=layout)


def operations(graph):
    return [node.op_type for node in graph.graph.node]


def check(name, *, layout):
    layer, variables, graph = exported(name, layout=layout)
    for n in (1, 3):
        x = images((n, *SHAPE[1:]))
        assert largest_difference(graph, layer, variables, x, layout=layout) < 1e-4
    turned = TRANSPOSED.get(name, 0) + 2 * (layout == "NHWC")
    assert operations(graph).count("Transpose") == turned


@pytest.mark.parametrize("name", QUICK)
def test_mechanisms(name):
    check(name, layout="NCHW")


@pytest.mark.parametrize("name", ["cbam", "self_attention"])
def test_channels_last(name):
    check(name, layout="NHWC")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rows[-1])
def test_every_variant(case):
    """Opened for any number of images where that can be."""
    shape = (2, *case.on.maps[0], case.on.features)
    name, _ = parity.mechanism(case.rows[-1])
    if len(shape) != 4:
        pytest.skip("images have two axes")
    variables = drawn(case.layer, shape)
    batch = 2 if name in OF_ONE_BATCH else None
    graph = to_onnx(case.layer, variables, (batch, *shape[1:]), layout="NCHW")
    assert largest_difference(graph, case.layer, variables, images(shape), layout="NCHW") < 1e-4
    if "chunked" not in case.rows[-1]:  # a loop over parts of the positions turns each
        assert operations(graph).count("Transpose") <= TRANSPOSED.get(name, 0)


def test_a_network():
    """Norms are in the convolutions, and no map is turned."""
    model = ResNet((1, 1), width=8, num_classes=3, attention={"name": "se", "reduction": 4})
    variables = drawn(model, (1, 32, 24, 3))
    graph = to_onnx(model, variables, (None, 32, 24, 3), layout="NCHW")
    for n in (1, 2):
        x = images((n, 32, 24, 3))
        assert largest_difference(graph, model, variables, x, layout="NCHW") < 1e-4
    wanted = {"Conv", "Relu", "MaxPool", "ReduceMean", "Reshape", "Sigmoid", "Mul", "Add", "Gemm"}
    assert set(operations(graph)) == wanted
    assert operations(graph).count("Add") == 2, "one for each block"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {"attention": "cbam"}),
        ("resnet50d", {}),
        ("resnetaa50d", {}),
        ("resnext50_32x4d", {}),
        ("skresnet18", {}),
        ("resnest14d", {}),
        ("ecaresnet26t", {}),
        ("vgg11_bn", {}),
        ("regnety_002", {}),
        ("mobilenetv2_100", {}),
        ("mobilenetv3_small_100", {}),
        ("lcnet_050", {}),
        ("tf_efficientnet_b0", {}),
        ("efficientnetv2_rw_t", {}),
        ("mixnet_s", {}),
    ],
)
def test_named_networks(name, fields):
    model = create_model(name, **fields)
    shape = (2, 64, 96, 3)
    variables = initialise(model, jax.random.key(0), shape)
    graph = to_onnx(model, variables, (None, *shape[1:]), layout="NCHW")
    assert largest_difference(graph, model, variables, images(shape), layout="NCHW") < 1e-4
    assert "Transpose" not in operations(graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters(name):
    model = tiny(name)
    shape = (2, 49, 65, 3)
    variables = drawn(model, shape)
    graph = to_onnx(model, variables, (None, *shape[1:]), layout="NCHW")
    assert largest_difference(graph, model, variables, images(shape), layout="NCHW") < 1e-4
    (output,) = graph.graph.output
    sizes = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
    assert sizes == ["batch", 4, 49, 65]


@pytest.mark.slow
def test_a_detector():
    """With its suppression of boxes, of a stated number of images."""
    model, variables = small(), small_variables()
    x = images((2, 64, 96, 3))
    graph = to_onnx(model, variables, x.shape)
    expected = jax.jit(model.apply)(variables, x)
    assert expected.valid.sum() > 20
    assert [output.name for output in graph.graph.output] == [*expected._fields]
    for found, wanted in zip(run(graph, x), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_what_stands_in_a_graph():
    _, _, graph = exported("se")
    assert operations(graph) == [
        *("ReduceMean", "Reshape", "Conv", "Relu", "Conv", "Reshape", "Sigmoid", "Reshape", "Mul")
    ]
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == [
        *("images", "output")
    ]
    assert graph.opset_import[0].version == 18
    assert graph.producer_name == "flaxattn"
    assert "Softmax" in operations(exported("sk")[2])
    assert Counter(operations(exported("self_attention")[2]))["MatMul"] == 2


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


class Function(nn.Module):
    """A function of images as a module."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        return self.function(x)


MATRIX = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
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


def test_a_difference_of_no_number_is_none():
    model = Function(lambda x: (x + 1, jnp.log(-jnp.abs(x) - 1)))
    x = images((1, 2, 2, 3))
    assert math.isnan(largest_difference(to_onnx(model, {}, x.shape), model, {}, x))


def halves_convolved(x):
    kernel = jnp.bfloat16(MATRIX[None, None])
    return lax.conv_general_dilated(
        *(jnp.bfloat16(x), kernel, (1, 1), "VALID"), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def windows(x, *, padding="VALID", dilation=None):
    one, two = (1, 1, 1, 1), (1, 2, 2, 1)
    return lax.reduce_window(x, 0.0, lax.add, two, one, padding, window_dilation=dilation)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "no padding be"),
        (lambda x: windows(x, dilation=(1, 2, 1, 1)), "no sum of windows with dilations"),
        (lambda x: windows(x, padding=((0, 0), (2, 0), (0, 0), (0, 0))), "pads a pool by 0 to"),
        (lambda x: x, "output 'output' is the input"),
        (lambda x: (x + 1, jnp.ones(3)), "output '1' is the input, a constant"),
        (halves_convolved, "cannot be exported to ONNX"),
    ],
)
def test_functions_that_are_refused(function, sentence):
    with pytest.raises(InputError) as refusal:
        to_onnx(Function(function), {}, (1, 5, 5, 4), layout="NCHW")
    assert sentence in str(refusal.value)


def test_the_converter_is_left_as_it_was():
    exported("se")
    assert not any(PLUGIN_REGISTRY[name] is ours for name, ours in OURS.items())


class Unknown(nn.Module):
    """With a function that ONNX lacks."""

    @nn.compact
    def __call__(self, x):
        return lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")


@pytest.mark.parametrize(
    ("name", "shape", "options", "sentence"),
    [
        ("se", (None, 8, 8, 16), {"layout": "CHWN"}, "unknown layout 'CHWN'"),
        ("se", (None, 8, 8, 16), {"opset": 11}, "opset=11 has not all that is needed: use 17"),
        ("se", (8, 8, 16), {}, "must be (N, H, W, C)"),
        ("se", (0, 8, 8, 16), {}, "integers of 1 or more"),
        ("cond_conv", (None, 8, 8, 16), {}, "state it, as in input_shape=(1, 8, 8, 16)"),
    ],
)
def test_what_is_refused(name, shape, options, sentence):
    layer = create_attention(name, **({"features": 16} if name == "cond_conv" else {}))
    with pytest.raises(InputError) as refusal:
        to_onnx(layer, drawn(layer, (1, 8, 8, 16)), shape, **options)
    assert sentence in str(refusal.value)


def test_what_onnx_lacks_is_named():
    with pytest.raises(InputError, match=r"cannot be exported to ONNX.*reduce_window_min"):
        to_onnx(Unknown(), {}, (1, 4, 4, 2))


def test_the_articles_modules(tmp_path, capsys):
    assert main(["export", "--article", str(tmp_path), "--draw"]) == 0
    printed = capsys.readouterr().out
    files = ["se_net", "cbma_net", "sk_net", "eca_net"]
    for file in files:
        graph = onnx.load(tmp_path / f"{file}.onnx")
        onnx.checker.check_model(graph, full_check=True)
        (x,) = graph.graph.input
        assert [d.dim_value for d in x.type.tensor_type.shape.dim] == [1, 128, 200, 200]
        assert not {"Transpose", "Softmax", "GlobalAveragePool"} & {*operations(graph)}
        assert f"{file}.onnx: opset 18, {len(operations(graph))} operations" in printed
    differences = re.findall(r"by (\S+) of the largest", printed)
    assert len(differences) == len(files)
    assert max(map(float, differences)) < 1e-5
    (sk,) = (one for one in article_modules(softmax=True) if one.file == "sk_net.onnx")
    assert "Softmax" in operations(sk.graph)
