"""What is given as weights and is none, or in another form, and what else `load` is given."""

import ml_dtypes
import numpy as np
import pytest
import torch

from flaxattn import InputError, create_model, weights
from flaxattn.attention import SqueezeExcite

LAYER = SqueezeExcite(use_bias=False, hidden_features=2)
SHAPE = (1, 8, 8, 4)
STATE = {
    "fc1.weight": np.arange(8, dtype=np.float32).reshape(2, 4, 1, 1),
    "fc2.weight": np.arange(8, dtype=np.float32).reshape(4, 2, 1, 1),
}


def refused(*arguments, **fields):
    """The sentence of a call of `load_pretrained` that is refused."""
    with pytest.raises(InputError) as error:
        weights.load_pretrained(*arguments, **fields)
    sentence = str(error.value)
    assert len(sentence) <= 600
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    "given",
    [
        lambda tensor: torch.tensor(tensor),
        lambda tensor: torch.nn.Parameter(torch.tensor(tensor)).detach(),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.astype(ml_dtypes.bfloat16),
    ],
    ids=["tensor", "detached", "list", "bfloat16"],
)
def test_what_numpy_takes_is_an_array(given):
    tensors = {key: given(tensor) for key, tensor in STATE.items()}
    kernel = weights.load(LAYER, tensors, SHAPE)["params"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, STATE["fc1.weight"][:, :, 0, 0])


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (
            torch.nn.Parameter(torch.ones(2)),
            "Parameter, and NumPy cannot take it (Can't call num",
        ),
        (
            torch.ones(2).bfloat16(),
            "Tensor, and NumPy cannot take it (Got unsupported Sc",
        ),
        (torch.ones(2, device="meta"), "Tensor, and NumPy cannot take it ("),
        ([[1], [1, 2]], "list, and NumPy cannot take it ("),
        (None, "NoneType and dtype object: pass an array of real numbers"),
        (
            {"weight": np.ones(2)},
            "dict and dtype object: pass an array of real numbers, and of",
        ),
        (np.asarray([object()]), "ndarray and dtype object"),
        ("weights.pth", "str and dtype <U11"),
        (np.ones(2, complex), "ndarray and dtype complex128"),
        (np.zeros(2, [("x", "f4")]), "ndarray and dtype [('x', '<f4')]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_tensor_that_is_none(tensor, sentence):
    assert f"fc1.weight is of type {sentence}" in refused(
        LAYER, STATE | {"fc1.weight": tensor}, SHAPE
    )


def test_a_file_of_texts(tmp_path):
    np.savez(tmp_path / "x.npz", **STATE, classes=np.asarray(["cat", "dog"]))
    assert "classes is of type ndarray and dtype <U3" in refused(LAYER, tmp_path / "x.npz", SHAPE)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            torch.nn.Linear(2, 2),
            "source is a torch module, Linear: pass {k: v.numpy() for k",
        ),
        (None, "source is of type NoneType: pass a path"),
        (7, "source is of type int: pass a path"),
        ([STATE], "source is of type list: pass a path"),
        ("", "source='' must be the path of a file"),
        ({0: np.ones(2)}, "source has the key 0: its keys must be strings"),
        ({("fc1", "kernel"): np.ones(2)}, "source has the key ('fc1', 'kernel'): its keys"),
    ],
)
def test_a_source_that_is_none(source, sentence):
    assert refused(LAYER, source, SHAPE).startswith(sentence)


@pytest.mark.parametrize(
    "shape",
    [
        224,
        None,
        "1,224,224,3",
        (),
        (1, 8.0, 8, 4),
        (1, None, None, 4),
        (-1, 8, 8, 4),
        (1, 0, 8, 4),
        (1, 2**31, 8, 4),
        (1, 10**30, 8, 4),
        [(1, 8, 8, 4), 4],
        {"x": 3},
    ],
)
@pytest.mark.parametrize("module", [LAYER, create_model("resnet10")], ids=["layer", "network"])
def test_a_shape_that_is_none(module, shape):
    sentence = refused(module, STATE, shape)
    assert sentence.startswith("input_shape=")
    assert (
        "must be (N, H, W, C), integers from 1 to 2**31 - 1, such as (1, 224, 224, 3)" in sentence
    )


@pytest.mark.parametrize(
    "naming", [3, {"fc1": "a"}, ["fc1"], [("a",)], (("a", "fc1", "linear", "x"),), (("a", 1),)]
)
def test_a_naming_that_is_none(naming):
    sentence = refused(LAYER, STATE, SHAPE, naming=naming)
    assert sentence.startswith("naming=")
    assert "must be a name, or renames: tuples (foreign, ours)" in sentence
    with pytest.raises(InputError, match="must be a name, or renames"):
        weights.to_torch({"params": {}}, naming)


@pytest.mark.parametrize("prefix", [None, 3, b"backbone."])
def test_a_prefix_that_is_none(prefix):
    assert "must be the beginning of keys" in refused(LAYER, STATE, SHAPE, prefix=prefix)


def test_a_part_of_flax_arrays(tmp_path):
    layer = weights.load(LAYER, STATE, SHAPE)
    whole = {"params": {"neck": layer["params"], "score": {"bias": np.zeros(3)}}}
    weights.write(tmp_path / "whole.npz", whole)
    loaded = weights.load(LAYER, tmp_path / "whole.npz", SHAPE, prefix="neck.")
    np.testing.assert_array_equal(
        loaded["params"]["fc1"]["kernel"], layer["params"]["fc1"]["kernel"]
    )
    assert "no tensor's key begins with prefix='nack.'" in refused(
        LAYER, tmp_path / "whole.npz", SHAPE, prefix="nack."
    )


def test_an_entry_of_a_mapping():
    sentence = refused(LAYER, {"ema": STATE}, SHAPE, entry="ema")
    assert sentence == "entry='ema' is for a file: pass source['ema'] instead."
