"""Files of tensors."""

import io
import json
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from flaxattn.errors import InputError
from flaxattn.extras import require_extra
from flaxattn.weights.pickles import read_pickle
from flaxattn.weights.sources import METADATA, Checkpoint, Config, fetch
from flaxattn.weights.torch_writer import STORAGE_OF, torch_file

_TORCH = "file of torch.save"
_KINDS = {
    ".safetensors": "safetensors file",
    ".npz": ".npz file",
    **dict.fromkeys((".pth", ".pt", ".bin", ".tar"), _TORCH),
}
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
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise InputError(
            f"cannot read weights from {path}: use a .safetensors, .pth, .pt, .bin, .tar or "
            f".npz file."
        )
    if entry is not None and kind != _TORCH:
        raise InputError(f"entry={entry!r} is for a {_TORCH}, unlike {path}: leave it out.")
    _require_content(path)
    try:
        match kind:
            case "safetensors file":
                tensors = _read_safetensors(path)
            case ".npz file":
                tensors = _read_npz(path)
            case _:
                tensors = read_pickle(path, entry)
    except InputError:
        raise
    except Exception as error:  # of a damaged or forged file, its library may raise any
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise InputError(
            f"{path} is not a whole {kind} ({reason}): with {path.stat().st_size} bytes it is cut "
            f"off or damaged, so download or copy it again."
        ) from error
    return unwrapped(tensors)


def _require_content(path: Path) -> None:
    """InputError for what often lies under the name of a weight file, and has no weights in it."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}.") from error
    if not start:
        raise InputError(f"{path} is empty, 0 bytes: download or copy it again.")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError(
            f"{path} is a Git LFS pointer, which only names the weights: get the file itself by "
            f"git lfs pull."
        )
    # Text of any encoding, with or without a byte order mark.
    text = start.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xfe\xff \t\r\n\f").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")):
        raise InputError(
            f"{path} is a web page (HTML or XML), as of a login or an error, and has no weights: "
            f"download it again, from the address of the file itself."
        )


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
    """Writes tensors, whole or not at all, to a file that `read` reads.

    Args:
        path: a .safetensors or .npz file; or a .pth or .pt file, which torch.load opens.
        tensors: Flax variables, whose arrays get names such as params/layer1_0/conv1/kernel, which
            `load` knows; or torch's keys with their tensors (`to_torch`), as torch's files want.
        config: what `fetch` will return with the file; kept in the file itself, and in NAME.json
            beside NAME.npz.
        overwrite: whether an existing file may be replaced.

    Raises InputError for an existing file, another suffix, a dtype that such a file cannot hold,
    and Flax variables for a file of torch's.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        key: np.asarray(array, order="C")
        for key, array in flatten_dict(dict(tensors), sep="/").items()
    }
    if path.suffix not in (".safetensors", ".npz", ".pth", ".pt"):
        raise InputError(
            f"cannot write weights to {path}: use a .safetensors, .npz, .pth or .pt file."
        )
    beside = path.with_suffix(".json")
    for file in (path, beside) if path.suffix == ".npz" else (path,):
        if file.exists() and not overwrite:
            raise InputError(f"{file} exists: name another file, or allow it to be overwritten.")
    stated = {METADATA: json.dumps(dict(config))} if config else {}
    match path.suffix:
        case ".safetensors":
            content = _safetensors(path, arrays, stated)
        case ".npz":
            content = _npz(path, arrays)
        case _:
            content = _torch_file(path, arrays, stated)
    write_atomically(path, content)
    if path.suffix == ".npz" and (config or beside.exists()):
        # Another file's config would be worse than none.
        write_atomically(beside, json.dumps(dict(config or {}), indent=2).encode())


def _safetensors(path: Path, arrays: Mapping[str, np.ndarray], stated: Mapping[str, str]) -> bytes:
    require_extra("hub", "safetensors", doing=f"writing {path}")
    from safetensors.numpy import save

    form = "pt" if all("/" not in key for key in arrays) else "flax"
    return save(dict(arrays), {"format": form, **stated})


def _npz(path: Path, arrays: Mapping[str, Any]) -> bytes:
    _require_dtypes(path, arrays, lambda dtype: dtype.kind != "V")
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    return archive.getvalue()


def _torch_file(path: Path, arrays: Mapping[str, np.ndarray], stated: Mapping[str, str]) -> bytes:
    if any("/" in key for key in arrays):
        raise InputError(
            f"{path} is for torch's tensors, and these are Flax variables: convert them by "
            f"to_torch (on a terminal, --to torch), or use a .safetensors or .npz file."
        )
    _require_dtypes(path, arrays, lambda dtype: dtype.newbyteorder("=") in STORAGE_OF)
    return torch_file(arrays, stated)


def _require_dtypes(
    path: Path, arrays: Mapping[str, np.ndarray], holds: Callable[[np.dtype], bool]
) -> None:
    if foreign := {str(array.dtype) for array in arrays.values() if not holds(array.dtype)}:
        names = ", ".join(sorted(foreign))
        raise InputError(f"{path} cannot hold {names}: use a .safetensors file.")


def write_atomically(path: Path, content: bytes) -> None:
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
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(
                f"{path} is a .npy file, one array without a name: save it with np.savez."
            )
        with archive:
            return dict(archive)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    require_extra("hub", "safetensors", doing=f"reading {path}")
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except AttributeError as error:
        raise InputError(
            f"{path} has numbers of a kind that NumPy lacks ({error}): save it in another "
            f"precision."
        ) from error
