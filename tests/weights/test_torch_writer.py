"""Files that torch opens, made without it."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flaxattn import InputError, weights
from flaxattn.attention import SqueezeExcite
from flaxattn.weights.torch_writer import STORAGE_OF, torch_file

DTYPES = sorted(STORAGE_OF, key=str)


def bits(array):
    return np.asarray(array).tobytes()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(data=st.data())
def test_torch_and_we_read_what_was_written(tmp_path_factory, data):
    """Bit for bit: NaN and infinite numbers, shapes without numbers, no axes, many tensors."""
    shapes = data.draw(st.lists(arrays.array_shapes(min_dims=0, min_side=0), max_size=4))
    tensors = {}
    for number, shape in enumerate(shapes):
        dtype = data.draw(st.sampled_from(DTYPES))
        raw = data.draw(arrays.arrays(np.uint8, (*shape, dtype.itemsize)))
        raw = raw % 2 if dtype.kind == "b" else raw
        tensors[f"layer.{number}.weight é"] = raw.view(dtype)[..., 0]
    tensors["x"] = np.arange(70000, dtype=np.float32).reshape(7, 100, 100)[:, ::2]
    path = tmp_path_factory.mktemp("written") / "x.pth"
    weights.write(path, tensors)
    theirs, ours = torch.load(path, weights_only=True), weights.read(path)
    assert list(theirs) == list(ours) == list(tensors)
    for key, array in tensors.items():
        assert theirs[key].shape == ours[key].shape == array.shape
        assert str(theirs[key].dtype) == f"torch.{array.dtype}"
        assert ours[key].dtype == array.dtype
        as_bytes = theirs[key].contiguous().reshape(-1).view(torch.uint8)
        assert bits(as_bytes) == bits(ours[key]) == bits(array)


def test_a_network_of_torchs_takes_it_strictly(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {k: t.numpy() for k, t in network.state_dict().items()}
    weights.write(tmp_path / "x.pth", state)
    for mapped in (False, True):
        loaded = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped)
        assert not any(network.load_state_dict(loaded, strict=True))


def test_numbers_of_the_other_endianness(tmp_path):
    big = np.arange(3, dtype=">f4")
    weights.write(tmp_path / "x.pt", {"x": big})
    assert torch.load(tmp_path / "x.pt", weights_only=True)["x"].tolist() == [0, 1, 2]


def test_equal_tensors_give_equal_files():
    tensors = {"x": np.ones(3, ml_dtypes.bfloat16)}
    assert torch_file(tensors, {}) == torch_file(dict(tensors), {})


def test_flax_variables_are_converted_first(tmp_path):
    tensors = {"fc1.weight": np.ones((2, 32)), "fc2.weight": np.ones((32, 2))}
    variables = weights.load(SqueezeExcite(use_bias=False), tensors, (1, 8, 8, 32))
    with pytest.raises(InputError, match=r"these are Flax variables: convert them by to_torch"):
        weights.write(tmp_path / "x.pth", variables)
    weights.write(tmp_path / "x.pth", weights.to_torch(variables))
    assert torch.load(tmp_path / "x.pth", weights_only=True)["fc1.weight"].shape == (2, 32, 1, 1)


@pytest.mark.parametrize("dtype", ["complex64", "uint32", "<U3", ml_dtypes.float8_e4m3fn])
def test_a_dtype_that_it_cannot_hold(tmp_path, dtype):
    with pytest.raises(InputError, match=r"x\.pth cannot hold .*: use a \.safetensors file"):
        weights.write(tmp_path / "x.pth", {"x": np.zeros(3, dtype)})
    assert not list(tmp_path.iterdir())
