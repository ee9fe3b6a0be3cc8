import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

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
    with pytest.raises(InputError, match=r"is not a whole .* 100 bytes it is cut off or damaged"):
        weights.read(path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46827520\n"
PAGES = (
    b"<!DOCTYPE html><html><head><title>Sign in</title>",
    b"\xef\xbb\xbf\r\n\t <!doctype HTML>",
    b"\n\n<HTML lang=en>",
    "\ufeff<html>".encode("utf-16-le"),
    b"<!-- saved from --><html>",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth", "pt", "bin", "tar"])
def test_what_is_saved_instead_of_weights(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    cases = [
        (b"", "is empty, 0 bytes: download"),
        (POINTER, "is a Git LFS pointer, .* git lfs pull"),
    ]
    cases += [(page, r"is a web page \(HTML or XML\), .* download it again") for page in PAGES]
    for content, sentence in cases:
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            weights.read(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    write(path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
        weights.read(path)


def test_an_entry_of_a_file_that_has_none(tmp_path):
    write(tmp_path / "model.npz")
    with pytest.raises(InputError, match=r"entry=.ema. is for a file of torch\.save, unlike"):
        weights.read(tmp_path / "model.npz", entry="ema")


def test_an_npz_packed_in_an_unknown_way(tmp_path):
    path = tmp_path / "weights.npz"
    write(path)
    data = bytearray(path.read_bytes())
    for at in (8, data.find(b"PK\x01\x02") + 10):  # the method in the file's header, in its index
        data[at : at + 2] = (97).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not a whole"):
        weights.read(path)


def test_an_npy_by_that_name(tmp_path):
    path = tmp_path / "weights.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InputError, match=r"is a \.npy file, one array without a name"):
        weights.read(path)


def test_numbers_that_numpy_has_not(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch_save_file({"x": torch.ones(4).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(InputError, match=r"of a kind that NumPy lacks \(.*float8_e4m3fn"):
        weights.read(path)


def zip_of_torch(path, method):
    """What torch.save writes, packed in another way, as tools that repack archives leave it."""
    plain = io.BytesIO()
    torch.save({key: torch.tensor(tensor) for key, tensor in TENSORS.items()}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


DAMAGED = {
    "stored.pth": lambda path: zip_of_torch(path, zipfile.ZIP_STORED),
    "deflated.pth": lambda path: zip_of_torch(path, zipfile.ZIP_DEFLATED),
    "legacy.pth": lambda path: torch.save(
        {key: torch.tensor(tensor) for key, tensor in TENSORS.items()},
        path,
        _use_new_zipfile_serialization=False,
    ),
    "stored.npz": lambda path: np.savez(path, **TENSORS),
    "deflated.npz": lambda path: np.savez_compressed(path, **TENSORS),
    "x.safetensors": lambda path: save_file(TENSORS, path),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_loads_or_says_so(tmp_path, name):
    """One to three bytes are others: in a header, in an index, or in the numbers."""
    path = tmp_path / name
    DAMAGED[name](path)
    whole = path.read_bytes()
    assert weights.read(path).keys() == TENSORS.keys()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            data[at] ^= rng.integers(1, 256)
        path.write_bytes(data)
        try:
            weights.read(path)
        except InputError:
            refused += 1
    assert refused > 20


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
