"""Files of tensors."""

import zipfile
from pathlib import Path

import numpy as np

from flaxattn.errors import InputError
from flaxattn.weights.pickles import read_pickle


def read(path: str | Path, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors, .npz, .pth or .pt file by name; nothing in it is executed.

    Args:
        path: the file.
        entry: which state dict of a torch checkpoint that has several, such as "state_dict_ema".

    Raises InputError for a missing file, another kind of file, one that does not parse, and a torch
    file that holds more than tensors (see `pickles`).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weight file {path}: check the path.")
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return _read_npz(path)
        case ".pth" | ".pt" | ".bin" | ".tar":
            return read_pickle(path, entry)
    raise InputError(
        f"cannot read weights from {path}: use a .safetensors, .pth, .pt, .bin, .tar or .npz file."
    )


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
