"""Files that torch itself wrote, and files that nobody should open."""

import argparse
import io
import os
import pickle
import re
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from flaxattn import weights
from flaxattn.attention import SqueezeExcite
from flaxattn.errors import InputError
from flaxattn.weights import pickles
from tests.torch_reference.torchvision_shim import timm

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content, path, zipped):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_a_network_is_read_as_torch_wrote_it(tmp_path, zipped):
    state = timm.create_model("resnet18", num_classes=10).state_dict()
    read = weights.read(save(state, tmp_path / "resnet18.pth", zipped))
    assert list(read) == list(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(read[key], tensor.numpy(), strict=True)


@FORMATS
def test_every_dtype_and_view(tmp_path, zipped):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "slice": base[1, :, 1:3],
        "transposed": base.mT,
        "expanded": torch.ones(3, 1).expand(3, 5),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    dtypes = ("float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors |= {name: torch.ones(3).to(getattr(torch, name)) for name in dtypes}
    read = weights.read(save(tensors, tmp_path / "tensors.pt", zipped))
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(read[key], tensor.detach().numpy(), strict=True)
        assert read[key].flags.owndata


@FORMATS
def test_bfloat16(tmp_path, zipped):
    tensor = torch.randn(5).to(torch.bfloat16)
    read = weights.read(save({"x": tensor}, tmp_path / "x.pth", zipped))["x"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.astype(np.float32), tensor.float().numpy())


@FORMATS
def test_a_training_checkpoint(tmp_path, zipped):
    layer = timm.layers.SEModule(32)
    parallel = {f"module.{key}": tensor for key, tensor in layer.state_dict().items()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9).state_dict()
    content = {"epoch": 3, "state_dict": parallel, "optimizer": optimizer, "best": None}
    path = save(content, tmp_path / "checkpoint.pth.tar", zipped)
    variables = weights.load(SqueezeExcite.timm(), path, (1, 8, 8, 32))
    np.testing.assert_array_equal(variables["params"]["fc2"]["bias"], layer.fc2.bias.detach())


@FORMATS
def test_a_checkpoint_with_the_arguments_of_its_script(tmp_path, zipped):
    arguments = argparse.Namespace(lr=0.1, model=argparse.Namespace(name="resnet50"), steps=[1, 2])
    content = {"model": {"x": torch.ones(2)}, "args": arguments}
    assert weights.read(save(content, tmp_path / "deit.pth", zipped)).keys() == {"x"}
    arguments.path = Bomb(tmp_path / "harm")
    with pytest.raises(InputError, match=r"mkdir, .* nothing of it was run"):
        weights.read(save(content, tmp_path / "bomb.pth", zipped))
    assert not (tmp_path / "harm").exists()


@FORMATS
def test_numpys_numbers_beside_the_weights(tmp_path, zipped):
    rng = np.random.default_rng(0)
    content = {
        "state_dict": {"x": torch.ones(2)},
        "metric": np.float64(0.7),
        "best": np.int64(3),
        "flags": [np.bool_(True), np.str_("a"), np.float32([]), np.ones((2, 3), order="F")],
        "rng": (rng.bit_generator.state, np.random.get_state()),
        np.int64(7): np.dtype("float32"),
    }
    path = save(content, tmp_path / "checkpoint.pth", zipped)
    assert weights.read(path).keys() == {"x"}
    if zipped:  # as NumPy 1 calls it
        path.write_bytes(renamed(path, b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert weights.read(path).keys() == {"x"}
    content["metric"] = np.asarray([Bomb(tmp_path / "harm")], object)
    with pytest.raises(InputError, match=r"mkdir, .* nothing of it was run"):
        weights.read(save(content, tmp_path / "bomb.pth", zipped))
    assert not (tmp_path / "harm").exists()


def renamed(path, old, new):
    """The zip file at `path` with another name in its pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(old, new))
    return content.getvalue()


@pytest.mark.parametrize(
    "call",
    [
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00idna_xtR",  # looks for a module
        b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR",  # 2 GiB
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85X\x01\0\0\0btR",
        b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR",
    ],
    ids=["codec", "ndarray", "reconstruct", "bytes"],
)
def test_what_is_ignored_is_not_called(tmp_path, call):
    path = tmp_path / "x.pth"
    path.write_bytes(legacy(b"\x80\x02}X\x01\0\0\0x" + call + b"s." + pickle.dumps([], 2)))
    tracemalloc.start()
    with pytest.raises(InputError, match="has 0 state dicts"):
        weights.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert not any("idna_x" in name for name in sys.modules)


def test_two_state_dicts_need_a_choice(tmp_path):
    one, other = {"x": torch.zeros(1)}, {"x": torch.ones(1)}
    path = save({"state_dict": one, "state_dict_ema": other}, tmp_path / "two.pth", True)
    with pytest.raises(InputError, match=r"2 state dicts: \['state_dict', 'state_dict_ema'\]"):
        weights.read(path)
    assert weights.read(path, entry="state_dict_ema")["x"] == 1
    for entry in ("ema", 3, ["state_dict"]):
        with pytest.raises(InputError, match=rf"no state dict {re.escape(repr(entry))}: it has"):
            weights.read(path, entry=entry)


def test_names_of_any_length_make_short_sentences(tmp_path):
    names = [f"{number}" * 1000 for number in range(50)]
    path = save({name: {"x": torch.ones(1)} for name in names}, tmp_path / "x.pth", True)
    path.with_name("y.pth").write_bytes(b"\x80\x02c" + b"a" * 5000 + b"\nb\n.")
    for given in ((path,), (path, "x" * 5000), (path.with_name("y.pth"),)):
        with pytest.raises(InputError) as error:
            weights.read(given[0], entry=(*given, None)[1])
        assert len(str(error.value)) <= 600


@pytest.mark.parametrize("content", [{"epoch": 3}, 7, [torch.ones(1)], {}])
def test_no_state_dict(tmp_path, content):
    with pytest.raises(InputError, match="has 0 state dicts"):
        weights.read(save(content, tmp_path / "none.pth", True))


class Bomb:
    """What an attacker puts into a checkpoint."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@FORMATS
@pytest.mark.parametrize("place", ["value", "key"])
def test_foreign_code_is_refused_and_not_run(tmp_path, zipped, place):
    bomb = Bomb(tmp_path / "harm")
    content = {"x": torch.ones(1), "y": bomb} if place == "value" else {"x": {"z": [bomb]}}
    path = save(content, tmp_path / "bomb.pth", zipped)
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.mkdir, .* nothing of it was run"):
        weights.read(path)
    assert not (tmp_path / "harm").exists()


def test_a_builtin_is_foreign_code_too(tmp_path):
    path = tmp_path / "eval.pth"
    path.write_bytes(pickle.dumps(eval))
    with pytest.raises(InputError, match=r"asks for builtins\.eval"):
        weights.read(path)


@FORMATS
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path, zipped, keep):
    path = save({"x": torch.ones(1000)}, tmp_path / "x.pth", zipped)
    size = int(path.stat().st_size * keep)
    path.write_bytes(path.read_bytes()[:size])
    sentence = rf"is not a whole file of torch.save .* {size} bytes it is cut off .* download"
    with pytest.raises(InputError, match=sentence if size else "is empty, 0 bytes: download"):
        weights.read(path)
    assert not (zipped and size and zipfile.is_zipfile(path))


def legacy(content):
    """A file of the format before torch 1.6 whose third pickle is `content`."""
    start = [pickle.dumps(part, 2) for part in (pickles._MAGIC, 1001, {"little_endian": True})]
    return b"".join(start) + content


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch FloatStorage",
        "torch BFloat16Storage",
        "torch Size",
        "collections OrderedDict",
        "argparse Namespace",
        "numpy dtype",
        "numpy ndarray",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray _reconstruct",
        "_codecs encode",
        "__builtin__ bytes",
    ],
)
def test_a_file_does_not_change_its_reader(tmp_path, name, slots):
    """The opcode BUILD sets the attributes of whatever stands under it, in either of two ways."""
    path = tmp_path / "x.pth"
    state = {"__doc__": "owned", "__defaults__": (1,)}
    state = pickle.dumps((None, state) if slots else state, 2)[2:-1]
    path.write_bytes(legacy(b"c" + name.replace(" ", "\n").encode() + b"\n" + state + b"b."))
    with pytest.raises(InputError, match="is not a whole file of torch"):
        weights.read(path)
    stand_in = pickles._Unpickler(io.BytesIO(), path).find_class(*name.split())
    for made in (stand_in, pickles.Ignored, pickles._rebuild_tensor, pickles._rebuild_parameter):
        assert made.__doc__ != "owned"
    for made in (pickles._rebuild_tensor, pickles._rebuild_parameter):
        assert made.__defaults__ is None


SHAPE = b"M" + (1000).to_bytes(2, "little")  # the storage's size reads the same and comes first


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            SHAPE,
            b"M" + (60000).to_bytes(2, "little"),
            r"a tensor \(60000,\) beyond its stor.* 1000",
        ),
        (SHAPE, b"X\x01\x00\x00\x00n", "'str' object cannot be interpreted as an integer"),
        (  # 16 strides of 2^60 + 1 are 16 in 64 bits
            SHAPE + b"\x85q\x08K\x01\x85",
            b"K\x11\x85L%dL\n\x85" % (2**60 + 1),
            r"a tensor \(17,\) beyond its storage of 1000",
        ),
        (  # torch's types of numbers stand for storages, and make no number of NumPy's
            SHAPE + b"\x85q\x08K\x01\x85",
            b"ctorch\nLongStorage\n(K\x11tR\x85K\x01\x85",
            "'Storage' object cannot be interpreted as an integer",
        ),
        (  # the storage would say that it is larger, and never be filled
            b"QK\x00",
            b"Q}(X\x04\x00\x00\x00sizeM\x60\xeaX\x04\x00\x00\x00fillctorch\nSize\nubK\x00",
            "it sets the attributes of a storage",
        ),
    ],
    ids=["shape", "text", "overflow", "number", "state"],
)
def test_memory_beyond_a_storage_is_not_read(tmp_path, old, new, sentence):
    """A file may state anything of its tensors."""
    path = save({"x": torch.ones(1000)}, tmp_path / "x.pth", True)
    forged = tmp_path / "forged.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                head, found, tail = data.rpartition(old)
                assert found
                data = head + new + tail
            target.writestr(name, data)
    with pytest.raises(InputError, match=sentence):
        weights.read(forged)


def test_state_dicts_under_numbers_and_names(tmp_path):
    """Names of any kind can be listed, and each can be asked for."""
    content = {1: {"x": torch.zeros(1)}, "ema": {"x": torch.ones(1)}}
    path = save(content, tmp_path / "two.pth", True)
    with pytest.raises(InputError, match=r"2 state dicts: \['1', 'ema'\]"):
        weights.read(path)
    assert weights.read(path, entry="1")["x"] == 0


def test_another_file_by_that_name(tmp_path):
    path = tmp_path / "picture.pth"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match="is not a whole file of torch"):
        weights.read(path)
