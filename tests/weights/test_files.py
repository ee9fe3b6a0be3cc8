import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxattn import weights
from flaxattn.attention import SqueezeExcite
from flaxattn.errors import InputError

TENSORS = {
    "fc1.weight": np.ones((2, 32, 1, 1), np.float32),
    "fc1.bias": np.ones(2, np.float32),
    "fc2.weight": np.ones((32, 2, 1, 1), np.float32),
    "fc2.bias": np.zeros(32, np.float32),
}


def write(path):
    if path.suffix == ".npz":
        np.savez(path, **TENSORS)
    else:
        save_file(TENSORS, path)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_loads_like_its_tensors(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    write(path)
    variables = weights.load(SqueezeExcite(), path, (1, 8, 8, 32))
    np.testing.assert_array_equal(variables["params"]["fc1"]["bias"], TENSORS["fc1.bias"])
    for key, array in weights.read(str(path)).items():
        np.testing.assert_array_equal(array, TENSORS[key], strict=True)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    write(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="is not a whole"):
        weights.read(path)


def test_an_npz_packed_in_an_unknown_way(tmp_path):
    path = tmp_path / "weights.npz"
    write(path)
    data = bytearray(path.read_bytes())
    for at in (8, data.find(b"PK\x01\x02") + 10):  # the method in the file's header, in its index
        data[at : at + 2] = (97).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not a whole"):
        weights.read(path)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, fc=np.asarray([object()], dtype=object))
    with pytest.raises(InputError, match="is not a whole"):
        weights.read(path)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="there is no weight file"):
        weights.read(tmp_path / "weights.npz")


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "weights.h5"
    path.touch()
    with pytest.raises(InputError, match=r"use a \.safetensors, \.pth, .* or \.npz file"):
        weights.read(path)
