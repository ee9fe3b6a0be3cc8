"""ONNX graphs: ONNX Runtime's answers to them, what stands in them, and what is refused."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import lax
from jax2onnx.plugins.plugin_system import PLUGIN_REGISTRY

from flaxattn import InputError, create_attention
from flaxattn.__main__ import main
from flaxattn.export.onnx import largest_difference, run, to_onnx
from flaxattn.export.onnx.article import article_modules
from flaxattn.export.onnx.operators import OURS
from flaxattn.layers.initialise import initialise
from flaxattn.models import ResNet, create_model
from flaxattn.models.segmentation import SEGMENTERS
from tests.attention import parity
from tests.attention.test_parity import CASES
from tests.export.onnx.exports import (
    MATRIX,
    QUICK,
    SHAPE,
    Function,
    drawn,
    exported,
    images,
    operations,
)
from tests.models.detection.test_faster_rcnn import small, small_variables
from tests.models.segmentation.test_segmenter import tiny

# How many arrays are turned with channels first, where it is not 0: matrices of positions or of
# blocks of positions, and axes that a mechanism exchanges.
TRANSPOSED = {
    **dict.fromkeys(("danet_position", "gsop", "multi_head", "non_local", "self_attention"), 1),
    **dict.fromkeys(("cond_conv", "danet_channel", "double_attention", "dynamic_conv"), 2),
    **dict.fromkeys(("shuffle", "sge", "simplified_psa", "split_attention", "triplet"), 2),
    "bat": 4,
    "botnet": 4,
    "criss_cross": 20,
    "gather_excite": 3,
    "generalized": 6,
    "halo": 11,
    "lambda": 5,
    "psanet": 9,
    "window": 6,
}
# The number of images is there the number of a convolution's groups.
OF_ONE_BATCH = ("cond_conv", "dynamic_conv")


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
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if len(case.on.maps[0]) == 2],
    ids=lambda case: case.rows[-1],
)
def test_every_variant(case):
    """Opened for any number of images where that can be."""
    shape = (2, *case.on.maps[0], case.on.features)
    name, _ = parity.mechanism(case.rows[-1])
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
    if name.startswith(("fcn", "deeplabv3", "lraspp")):
        assert "Transpose" not in operations(graph)
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


def test_a_difference_of_no_number_is_none():
    model = Function(lambda x: (x + 1, jnp.log(-jnp.abs(x) - 1)))
    x = images((1, 2, 2, 3))
    assert math.isnan(largest_difference(to_onnx(model, {}, x.shape), model, {}, x))


def least(x):
    return lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")


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
        (least, "primitive 'reduce_window_min'"),
    ],
)
def test_functions_that_are_refused(function, sentence):
    with pytest.raises(InputError) as refusal:
        to_onnx(Function(function), {}, (1, 5, 5, 4), layout="NCHW")
    assert sentence in str(refusal.value)


def test_the_converter_is_left_as_it_was():
    exported("se")
    assert not any(PLUGIN_REGISTRY[name] is ours for name, ours in OURS.items())


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
