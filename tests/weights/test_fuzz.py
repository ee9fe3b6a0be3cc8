"""Files of any content are read, or refused in a short sentence, and nothing else happens."""

import functools
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from flaxattn import InputError, weights
from flaxattn.attention import SqueezeExcite
from flaxattn.weights.torch_writer import torch_file

LAYER = SqueezeExcite(use_bias=False, hidden_features=2)
SHAPE = (1, 4, 4, 3)
STATE = {
    "fc1.weight": np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1),
    "fc2.weight": np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1),
}

quick = functools.partial(settings, deadline=None, derandomize=True)


def of_torch(zipped):
    content = io.BytesIO()
    state = {key: torch.tensor(tensor) for key, tensor in STATE.items()}
    torch.save(
        {"state_dict": state, "best": np.float64(0.7)},
        content,
        _use_new_zipfile_serialization=zipped,
    )
    return content.getvalue()


def of_numpy():
    content = io.BytesIO()
    np.savez(content, **STATE)
    return content.getvalue()


WHOLE = {
    "zip.pth": of_torch(zipped=True),
    "legacy.pth": of_torch(zipped=False),
    "ours.pth": torch_file(STATE, {"flaxattn.config": '{"architecture": "se"}'}),
    "x.safetensors": save(STATE, {"flaxattn.config": '{"architecture": "se"}'}),
    "x.npz": of_numpy(),
}
FILES = pytest.mark.parametrize("name", WHOLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def outcome(function, *arguments):
    """What it returns, or None where it is refused."""
    try:
        return function(*arguments)
    except InputError as error:
        sentence = str(error)
    assert 0 < len(sentence) <= 600, sentence
    return None


def tensors_of(path, content):
    """What `read` makes of the content, after `fetch` and `load` have been asked too."""
    path.write_bytes(content)
    outcome(weights.fetch, path)
    tensors = outcome(weights.read, path)
    loaded = outcome(weights.load, LAYER, path, SHAPE)
    assert loaded is None or tensors is not None
    if tensors is not None:
        assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())
    return tensors


@FILES
def test_whole_files_are_read(folder, name):
    tensors = tensors_of(folder / name, WHOLE[name])
    assert tensors.keys() == STATE.keys()
    for key, tensor in STATE.items():
        np.testing.assert_array_equal(tensors[key], tensor, strict=True)


@FILES
@quick(max_examples=30)
@given(data=st.data())
def test_a_file_that_ends_anywhere_is_refused(folder, name, data):
    end = data.draw(st.integers(0, len(WHOLE[name]) - 1))
    assert tensors_of(folder / name, WHOLE[name][:end]) is None


@FILES
@quick(max_examples=60)
@given(data=st.data())
def test_a_file_with_another_byte_is_read_or_refused(folder, name, data):
    content = bytearray(WHOLE[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    tensors = tensors_of(folder / name, bytes(content))
    if tensors is not None and name.endswith(("zip.pth", "ours.pth", ".npz")):  # with checksums
        for key in tensors.keys() & STATE.keys():
            np.testing.assert_array_equal(tensors[key], STATE[key])


@quick(max_examples=60)
@given(place=st.floats(0, 1), change=st.integers(1, 255))
def test_a_forged_pickle_is_read_or_refused(folder, place, change):
    """Where a checksum would have ended the reading before."""
    content = io.BytesIO()
    whole = io.BytesIO(WHOLE["zip.pth"])
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(content, "w") as target:
        for name in source.namelist():
            part = bytearray(source.read(name))
            if name.endswith("data.pkl"):
                part[int(place * (len(part) - 1))] ^= change
            target.writestr(name, bytes(part))
    tensors_of(folder / "forged.pth", content.getvalue())


@quick(max_examples=60)
@given(
    suffix=st.sampled_from(["pth", "pt", "bin", "tar", "npz", "safetensors"]),
    start=st.sampled_from(
        [b"", b"PK\x03\x04", b"\x80\x02", b"\x93NUMPY", b"\x10" + bytes(7) + b"{"]
    ),
    rest=st.binary(max_size=64),
)
def test_bytes_are_no_weights(folder, suffix, start, rest):
    assert not tensors_of(folder / f"bytes.{suffix}", start + rest)


FIELDS = ("architecture", "num_classes", "input_size", "mean", "std", "crop_pct", "crop_mode")
KEYS = st.sampled_from([*FIELDS, "interpolation", "label_names", "pretrained_cfg"])
NUMBERS = st.integers() | st.integers(-3, 1000) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9) | st.lists(NUMBERS, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=8,
)


@quick(max_examples=200)
@given(config=st.dictionaries(KEYS, JSON, max_size=6) | JSON)
def test_any_config_is_taken_or_refused(folder, config):
    (folder / "model.safetensors").touch()
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = outcome(weights.fetch, folder / "model.safetensors")
    assert isinstance(config, dict) or checkpoint is None
    if checkpoint is not None:
        outcome(lambda: checkpoint.architecture)
        assert outcome(lambda: checkpoint.num_classes) is None or checkpoint.num_classes >= 0
        outcome(weights.class_names, checkpoint.config)
        if preprocessing := outcome(weights.Preprocessing.of, checkpoint.config):
            assert min(preprocessing.input_size) > 0
