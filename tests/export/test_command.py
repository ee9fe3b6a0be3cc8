"""python -m flaxattn export, of a network in a file."""

import jax
import numpy as np
import onnx
import pytest

from flaxattn import create_model, weights
from flaxattn.__main__ import main
from flaxattn.export.onnx import largest_difference
from flaxattn.layers.initialise import initialise

NAME = "lcnet_035"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network, and its file."""
    model = create_model(NAME, num_classes=4)
    variables = initialise(model, jax.random.key(0), (1, 32, 48, 3))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    weights.write(path, variables, config={"architecture": NAME, "num_classes": 4})
    return model, variables, path


def test_onnx(network, tmp_path, capsys):
    model, variables, path = network
    out = tmp_path / "lcnet.onnx"
    options = ["--size", "32", "48", "--layout", "NCHW"]
    assert main(["export", str(path), str(out), *options]) == 0
    assert "0 of them Transpose; ONNX Runtime differs from JAX by" in capsys.readouterr().out
    graph = onnx.load(out)
    sizes = [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 32, 48]
    x = np.random.default_rng(0).normal(size=(3, 32, 48, 3)).astype(np.float32)
    assert largest_difference(graph, model, variables, x, layout="NCHW") < 1e-4


def test_stablehlo(network, tmp_path, capsys):
    model, variables, path = network
    out = tmp_path / "lcnet.stablehlo"
    assert main(["export", str(path), str(out), "--size", "32", "48", "--batch", "2"]) == 0
    assert "images 2 x 32 x 48 x 3, for cpu, cuda, tpu" in capsys.readouterr().out
    x = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)
    answer = jax.export.deserialize(out.read_bytes()).call(x)
    np.testing.assert_allclose(answer, jax.jit(model.apply)(variables, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out.onnx"], "export takes SOURCE OUT, or --article DIRECTORY"),
        (["w.safetensors", "out", "--article"], "export takes SOURCE OUT, or --article DIRECTORY"),
        (["dir", "--article", "--batch", "2"], "--batch 2: the article's modules have their own"),
        (["w.safetensors", "out.pb"], "out.pb ends in .pb: use .onnx or .stablehlo"),
        (["w.safetensors", "out.onnx", "--softmax"], "--softmax True: this is for --article"),
    ],
)
def test_what_is_refused(arguments, sentence, capsys):
    assert main(["export", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_what_is_of_onnx_alone(network, tmp_path, capsys):
    _, _, path = network
    out = str(tmp_path / "net.stablehlo")
    assert main(["export", str(path), out, "--layout", "NCHW"]) == 2
    assert "--layout 'NCHW': this is for ONNX alone; leave it out" in capsys.readouterr().err
