"""Files of tensors."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from flaxattn.errors import InputError
from flaxattn.weights.pickles import read_pickle
from flaxattn.weights.sources import METADATA, Checkpoint, Config, fetch

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key


def read(source: str | Path | Checkpoint, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors, .npz, .pth or .pt file by name; nothing in it is executed.

    Args:
        source: the file, or what `fetch` turns into one.
        entry: which state dict of a torch checkpoint that has several, such as "state_dict_ema".

    The prefixes of torch's DataParallel and torch.compile, where all keys have them, are dropped.

    Raises InputError for a missing file, another kind of file, a damaged one, and a torch file that
    holds more than tensors (see `pickles`).
    """
    path = (source if isinstance(source, Checkpoint) else fetch(source)).path
    match path.suffix:
        case ".safetensors":
            tensors = _read_safetensors(path)
        case ".npz":
            tensors = _read_npz(path)
        case ".pth" | ".pt" | ".bin" | ".tar":
            tensors = read_pickle(path, entry)
        case _:
            raise InputError(
                f"cannot read weights from {path}: use a .safetensors, .pth, .pt, .bin, .tar or "
                f".npz file."
            )
    return unwrapped(tensors)


def unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the keys of the module inside DataParallel and torch.compile."""
    for prefix in _WRAPPERS:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return unwrapped({key.removeprefix(prefix): tensors[key] for key in tensors})
    return dict(tensors)


def write(
    path: str | Path,
    tensors: Mapping[str, Any],
    *,
    config: Config | None = None,
    overwrite: bool = False,
) -> None:
    """Writes tensors, whole or not at all, to a .safetensors or .npz file that `read` reads.

    Args:
        path: the file.
        tensors: Flax variables, whose arrays get names such as params/layer1_0/conv1/kernel, which
            `load` knows; or torch's keys with their tensors (`to_torch`).
        config: what `fetch` will return with the file; kept in the header of a .safetensors file,
            and in NAME.json beside NAME.npz.
        overwrite: whether an existing file may be replaced.

    Raises InputError for an existing file, another suffix, and a dtype that an .npz file loses.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        key: np.ascontiguousarray(array)
        for key, array in flatten_dict(dict(tensors), sep="/").items()
    }
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"cannot write weights to {path}: use a .safetensors or .npz file.")
    beside = path.with_suffix(".json")
    for file in (path, beside) if path.suffix == ".npz" else (path,):
        if file.exists() and not overwrite:
            raise InputError(f"{file} exists: name another file, or allow it to be overwritten.")
    if path.suffix == ".safetensors":
        _atomically(path, _safetensors(path, arrays, config))
        return
    foreign = sorted({str(array.dtype) for array in arrays.values() if array.dtype.kind == "V"})
    if foreign:
        raise InputError(f"{path} cannot hold {', '.join(foreign)}: use a .safetensors file.")
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    _atomically(path, archive.getvalue())
    if config or beside.exists():  # another file's config would be worse than none
        _atomically(beside, json.dumps(dict(config or {}), indent=2).encode())


def _safetensors(path: Path, arrays: Mapping[str, np.ndarray], config: Config | None) -> bytes:
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise _needs_safetensors("writing", path) from error
    metadata = {"format": "pt" if all("/" not in key for key in arrays) else "flax"}
    return save(dict(arrays), metadata | ({METADATA: json.dumps(dict(config))} if config else {}))


def _atomically(path: Path, content: bytes) -> None:
    """Under another name first: whoever reads `path` finds the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(
                    f"{path} is a .npy file, one array without a name: save it with np.savez."
                )
            with archive:
                return dict(archive)
    except InputError:
        raise
    except Exception as error:  # a damaged file has zipfile, zlib and NumPy raise any
        raise InputError(f"{path} is not a whole .npz file: {error}.") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise _needs_safetensors("reading", path) from error
    try:
        return load_file(path)
    except AttributeError as error:
        raise InputError(
            f"{path} has numbers of a kind that NumPy lacks ({error}): save it in another "
            f"precision."
        ) from error
    except Exception as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}.") from error


def _needs_safetensors(doing: str, path: Path) -> InputError:
    return InputError(f"{doing} {path} needs the safetensors package: pip install 'flaxattn[hub]'.")
