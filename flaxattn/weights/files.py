"""Files of tensors."""

import zipfile
from pathlib import Path

import numpy as np

from flaxattn.errors import InputError


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors or .npz file by name; nothing in either is ever executed.

    Raises InputError for a missing file, another kind of file, and one that does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weight file {path}: check the path.")
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return _read_npz(path)
    raise InputError(f"cannot read weights from {path}: use a .safetensors or an .npz file.")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole .npz file: {error}.") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
        from safetensors.numpy import load_file
    except ImportError as error:
        raise InputError(
            f"reading {path} needs the safetensors package: pip install 'flaxattn[hub]'."
        ) from error
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}.") from error
