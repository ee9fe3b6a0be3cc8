"""Files of torch.save, read without torch and without running what they contain.

Such a file is a pickle, and a pickle is a program that may call any function by its name. Only a
few names are known here: those that rebuild tensors and dictionaries, which stand for functions of
our own, and those of a training script's arguments and of NumPy's numbers, which stand for nothing.
Any other ends the reading before anything is called. The tensors' bytes lie beside the pickle, in a
zip archive (since torch 1.6), or behind it (before).
"""

import collections
import functools
import io
import math
import operator
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from flaxattn.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in a file older than torch 1.6

_LONGEST = 100  # characters of a name in a sentence

# Torch's types of storages, for the dtypes that NumPy has.
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

# What pickles of NumPy's scalars, dtypes and arrays call, such as those of a metric or of a random
# generator's state.
_NUMPY = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
}


class Storage:
    """The numbers that one or several tensors share; `array` is empty until they are read."""

    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype = np.dtype(dtype)
        self.size = size
        self.array = np.empty(0, self.dtype)

    def __setstate__(self, state: Any) -> None:
        """Attributes of the file's own would have memory read that does not belong to it."""
        raise pickle.UnpicklingError("it sets the attributes of a storage")

    def fill(self, data: bytes) -> None:
        if len(data) != self.size * self.dtype.itemsize:
            raise EOFError(f"{len(data)} bytes where {self.size} numbers should be")
        self.array = np.frombuffer(data, self.dtype.newbyteorder("<"))


class Tensor(NamedTuple):
    """A tensor's view of its storage, in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """A copy, after a check that the view stays within the storage."""
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        inside = self.offset >= 0 and min(self.strides, default=0) >= 0
        size = self.storage.array.size
        if math.prod(self.shape) and not (inside and self.offset + last < size):
            raise ValueError(f"a tensor {self.shape} beyond its storage of {size}")
        return np.lib.stride_tricks.as_strided(
            self.storage.array[self.offset :],
            self.shape,
            [step * self.storage.dtype.itemsize for step in self.strides],
        ).copy()


class Known:
    """What a name in a file stands for: the file may call it, and not change it.

    A pickle can set the attributes of whatever it holds, a function's defaults among them.
    """

    __slots__ = ("made",)

    def __init__(self, made: Callable[..., Any]) -> None:
        self.made = made

    def __call__(self, *arguments: Any) -> Any:
        return self.made(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the attributes of what it calls")


class Ignored:
    """Stands for what lies beside the weights: a script's arguments, and NumPy's numbers."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Takes no notice of them."""


def read_pickle(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file that torch.save wrote, by name.

    Args:
        path: the file, of either format.
        entry: which state dict of a training checkpoint to take, such as "state_dict_ema"; None for
            the only one, be it the file itself.

    Raises InputError for one that names anything else than tensors, dictionaries and what may lie
    beside them (nothing of it is run), and for one without a state dict, or with several and no
    `entry`. A damaged or forged file has zipfile, zlib and pickle raise any error.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip and not zipfile.is_zipfile(path):
        raise EOFError("the end of its zip archive is missing")
    content = _read_zip(path) if is_zip else _read_legacy(path)
    return {key: t.numpy() for key, t in _state_dict(path, content, entry).items()}


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = name.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        unpickler = _Unpickler(io.BytesIO(archive.read(name)), path)
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.fill(archive.read(f"{folder}data/{key}"))
    return content


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        if _Unpickler(file, path).load() != _MAGIC:
            raise ValueError("it begins with another number than torch's")
        _Unpickler(file, path).load()  # the version of the format
        _Unpickler(file, path).load()  # the byte order, and sizes of C types
        unpickler = _Unpickler(file, path)
        content = unpickler.load()
        for key in _Unpickler(file, path).load():
            storage = unpickler.storages[key]
            (size,) = struct.unpack("<q", file.read(8))
            if size != storage.size:
                raise ValueError(f"a storage of {size} numbers where {storage.size} should be")
            storage.fill(file.read(size * storage.dtype.itemsize))
    return content


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages, dictionaries and what it ignores; other names are refused."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): Known(collections.OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2"): Known(_rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): Known(_rebuild_parameter),
            ("torch", "Size"): Known(tuple),
            ("argparse", "Namespace"): Ignored,  # a class, for pickle makes an instance of it
        }
        if module in ("torch", "torch.storage") and name in STORAGES:
            return Known(functools.partial(Storage, STORAGES[name]))
        if (module, name) in _NUMPY:
            return Known(_ignored)
        if (module, name) not in known:
            foreign = f"{module}.{name}"[:_LONGEST]
            raise InputError(
                f"{self.path} asks for {foreign}, which is not a tensor; nothing of it was run: "
                f"where you trust the file, save its state dict alone, best with safetensors."
            )
        return known[module, name]

    def persistent_load(self, pid: Sequence[Any]) -> Storage:
        kind, storage, key, _, size, *view = pid
        if kind != "storage" or (view and view[0] is not None):
            raise ValueError(f"it refers to a {kind} that is not understood")
        return self.storages.setdefault(key, storage(size))


def _rebuild_tensor(storage: Storage, offset: int, shape, strides, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    index = operator.index  # Python's integers, for the check of the view must not overflow
    return Tensor(storage, index(offset), tuple(map(index, shape)), tuple(map(index, strides)))


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _ignored(*_: Any) -> Ignored:
    return Ignored()


def _state_dict(path: Path, content: Any, entry: str | None) -> Mapping[str, Tensor]:
    """The one dictionary of tensors in `content`, or the one called `entry`."""
    found = dict(_state_dicts(content))
    if entry is None and len(found) == 1:
        (entry,) = found
    if entry is None:
        raise InputError(
            f"{path} has {len(found)} state dicts: {reprlib.repr(sorted(found))}; use a file with "
            f"one, or name one by read(path, entry=...)."
        )
    if not isinstance(entry, str) or entry not in found:
        raise InputError(
            f"{path} has no state dict {reprlib.repr(entry)}: it has {reprlib.repr(sorted(found))}."
        )
    return found[entry]


def _state_dicts(content: Any) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Mappings that hold tensors under names and nothing else: `content` itself, and entries."""
    if not isinstance(content, Mapping):
        return
    for name, value in [("", content), *content.items()]:
        if isinstance(value, Mapping) and value:
            tensors = all(isinstance(tensor, Tensor) for tensor in value.values())
            if tensors and all(isinstance(key, str) for key in value):
                yield str(name), value
