"""Files that torch.load opens, made without torch: what `pickles` reads, the other way round."""

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxattn.weights.pickles import STORAGES
from flaxattn.weights.sources import TORCH_FOLDER

# By dtype, the torch type of storage that holds it.
STORAGE_OF = {np.dtype(dtype): name for name, dtype in STORAGES.items()}


def torch_file(tensors: Mapping[str, np.ndarray], extra: Mapping[str, str]) -> bytes:
    """The content of a file in torch's zip format, whose tensors each have their own storage.

    Args:
        tensors: of dtypes in STORAGE_OF.
        extra: texts to put beside them by name, of which torch takes no notice.

    The same tensors give the same bytes.
    """
    parts: dict[str, bytes | str] = {
        "data.pkl": _state_dict(tensors),
        "byteorder": "little",
        **extra,
        **{f"data/{i}": _little_endian(tensor) for i, tensor in enumerate(tensors.values())},
        "version": "3\n",
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(f"{TORCH_FOLDER}/{name}"), part)
    return content.getvalue()


def _little_endian(tensor: np.ndarray) -> bytes:
    return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


def _state_dict(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors, whose storages are called "0", "1" and so on."""
    items = [
        _plain(key) + _tensor(str(number), tensor)
        for number, (key, tensor) in enumerate(tensors.items())
    ]
    filled = pickle.MARK + b"".join(items) + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + _ORDERED_DICT + filled + pickle.STOP


def _tensor(storage: str, tensor: np.ndarray) -> bytes:
    """A call of torch's _rebuild_tensor_v2, as torch.save writes it."""
    kind = _global("torch", STORAGE_OF[tensor.dtype.newbyteorder("=")])
    strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
    place = _tuple(_plain("storage"), kind, _plain(storage), _plain("cpu"), _plain(tensor.size))
    arguments = _tuple(
        place + pickle.BINPERSID,
        _plain(0),  # the offset in the storage
        _plain(tensor.shape),
        _plain(strides),
        _plain(False),  # requires_grad
        _ORDERED_DICT,  # hooks
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _plain(value: Any) -> bytes:
    """What pushes a text, a number or a tuple of these."""
    return pickle.dumps(value, protocol=2)[2 : -len(pickle.STOP)]  # without its PROTO and STOP


def _tuple(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
