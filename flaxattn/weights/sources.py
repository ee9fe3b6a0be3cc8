"""From what a person calls a checkpoint to a file on this machine and its config.

A checkpoint is a file, a directory, or a repository of the Hugging Face Hub. Its config is what
timm keeps in config.json: the architecture, the number of classes, how images are prepared.
"""

import contextlib
import json
import os
import re
import reprlib
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flaxattn.errors import InputError
from flaxattn.extras import require_extra
from flaxattn.images.preprocessing import flat_config

# Of a directory or a repository, in the order in which they are looked for.
STANDARD = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar")

_CONFIG = "config.json"
METADATA = "flaxattn.config"  # where `files.write` puts the config in the file itself
TORCH_FOLDER = "archive"  # of all that torch's zip archives hold
_FEW = 6  # files that a sentence lists
_PREFIX = "hf-hub:"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


Config = Mapping[str, Any]  # timm's fields, such as architecture and num_classes


class Checkpoint(NamedTuple):
    """A file of weights, and its config, which is empty if it has none.

    The fields of timm's `pretrained_cfg` stand beside the others, which win, as in timm.
    """

    path: Path
    config: Config

    @property
    def architecture(self) -> str | None:
        """The name of the model that the config states, None if it states none.

        Raises InputError for anything but a name.
        """
        name = self.config.get("architecture")
        if name is not None and not isinstance(name, str):
            raise self._odd("architecture", "the name of a model")
        return name

    @property
    def num_classes(self) -> int:
        """The number of classes that the config states, 1000 if it states none.

        It is the one that `create_model`, `create_segmenter` or `create_detector` takes, for the
        latter with the background.

        Raises InputError for anything but an integer of 0 or more.
        """
        classes = self.config.get("num_classes")
        if classes is None:
            return 1000
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
            raise self._odd("num_classes", "an integer of 0 or more")
        return classes

    @property
    def model_fields(self) -> dict[str, Any]:
        """What `create_model` needs beside the name, as a run of train.py writes it."""
        fields = self.config.get("model_fields", {})
        if not isinstance(fields, Mapping):
            raise self._odd("model_fields", "a mapping")
        return {name: _without_lists(value) for name, value in fields.items()}

    def _odd(self, field: str, wanted: str) -> InputError:
        value = reprlib.repr(self.config[field])
        return InputError(
            f"the config of {self.path} has {field}={value}, which must be {wanted}: repair it, or "
            f"name the model and its classes yourself."
        )


def _without_lists(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, Mapping):
        return {name: _without_lists(inner) for name, inner in value.items()}
    return tuple(map(_without_lists, value)) if isinstance(value, list) else value


def fetch(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Checkpoint:
    """The local file that `source` means, downloaded where it must be, with its config.

        fetch("timm/resnet50.a1_in1k", revision="main")

    Args:
        source: a file; a directory with model.safetensors, pytorch_model.bin or one weight file of
            another name; or a Hugging Face repository "owner/name", with or without "hf-hub:". A
            `Path`, and what exists on this machine, is never looked for on the hub.
        revision: branch, tag or commit of a repository; None for its main branch.
        cache_dir: where downloads are kept; None for huggingface_hub's own place (HF_HOME).
        offline: whether to use the cache alone, as with HF_HUB_OFFLINE=1.

    The config of a file is the one that `write` put into it, or NAME.json beside NAME.npz, or
    config.json beside a file with one of the two standard names.

    Raises InputError for a source that is not a path or a name, a missing file or repository, a hub
    that cannot be reached, a config that is not a JSON object, and a revision of a local file.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise InputError(
            f"source={reprlib.repr(source)} must be the path of a file or a directory, or the name "
            f"of a repository such as timm/resnet50.a1_in1k."
        )
    path = Path(source)
    if not os.path.exists(path) and isinstance(source, str):  # Path.exists may raise
        name = source.removeprefix(_PREFIX)
        is_repository = _REPOSITORY.fullmatch(name) and not name.endswith(SUFFIXES)
        if is_repository:
            return _from_hub(name, revision, cache_dir, offline)
        if source.startswith(_PREFIX):
            raise InputError(f"{source} does not name a repository: write hf-hub:owner/name.")
    if revision is not None:
        raise InputError(
            f"revision={revision!r} belongs to a repository, which {source} is not: leave it out."
        )
    if os.path.isdir(path):
        path = _file_of(path)
    if not os.path.isfile(path):
        raise InputError(
            f"there is no weight file {path}: check the path, or name a directory or a Hugging "
            f"Face repository such as timm/resnet50.a1_in1k."
        )
    return Checkpoint(path, _config_of(path))


def _file_of(folder: Path) -> Path:
    for name in STANDARD:
        if os.path.isfile(folder / name):
            return folder / name
    try:
        found = sorted(file for file in folder.iterdir() if file.name.endswith(SUFFIXES))
    except OSError as error:
        raise InputError(
            f"cannot look into the directory {folder}: {error.strerror}; name the file in it, or "
            f"another directory."
        ) from error
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found[:_FEW])
    if len(found) > _FEW:
        names += f" and {len(found) - _FEW} more"
    names = names or f"none that ends in {', '.join(SUFFIXES)}"
    raise InputError(
        f"the directory {folder} has neither {' nor '.join(STANDARD)}, and of other weight files "
        f"{names}: name the file."
    )


def _config_of(path: Path) -> Config:
    stated = _written_into(path)
    if stated is not None:
        return _parsed(path, stated)
    if path.suffix == ".npz":
        beside = path.with_suffix(".json")
    elif path.name in STANDARD:
        beside = path.with_name(_CONFIG)
    else:
        return {}
    return _parsed(beside) if os.path.isfile(beside) else {}


def _written_into(path: Path) -> str | bytes | None:
    """The config that `files.write` put into a file, None if there is none.

    That is an entry of a safetensors header, or a record of torch's zip archive. `read` will
    complain of a file that is damaged.
    """
    with contextlib.suppress(Exception):  # of which zipfile raises many
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(size, path.stat().st_size)))
            return header["__metadata__"][METADATA]
        if path.suffix != ".npz" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.read(f"{TORCH_FOLDER}/{METADATA}")
    return None


def _parsed(path: Path, text: str | bytes | None = None) -> Config:
    """The config in `text`, which stands in the file `path`, or in that whole file."""
    try:
        return flat_config(json.loads(path.read_bytes() if text is None else text))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"the config in {path} is not a JSON object: {reason}; repair or remove it."
        ) from error


def _from_hub(
    repository: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> Checkpoint:
    require_extra(
        "hub",
        "huggingface_hub",
        doing=f"there is no file {repository}, and a Hugging Face repository",
    )
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where = f"{repository}{f' at {revision}' if revision else ''}"
    local_only = offline

    def get(name: str) -> Path | None:
        """The file in the cache, downloaded if need be; None if there is no such file."""
        nonlocal local_only
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repository,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=local_only,
                )
            )
        except LocalEntryNotFoundError:
            local_only = True  # the hub does not respond: ask no further
        except EntryNotFoundError:
            pass
        return None

    try:
        path = next(filter(None, map(get, STANDARD)), None)
        config = get(_CONFIG) if path is not None else None
    except Exception as error:  # its HTTP client has errors of its own, which changed with it
        raise InputError(
            f"cannot get {where} from the Hugging Face Hub "
            f"({type(error).__name__}: {_first_line(error)}): check its name and revision, or "
            f"pass the path of a local file or directory."
        ) from error
    if path is not None:
        return Checkpoint(path, {} if config is None else _parsed(config))
    if local_only:
        raise InputError(
            f"{where} is not in the cache, and the Hugging Face Hub cannot be reached (or is left "
            f"out, by offline): download {STANDARD[0]} and {_CONFIG} elsewhere and pass the path "
            f"of their directory."
        )
    raise InputError(
        f"{where} has neither {' nor '.join(STANDARD)}: download its file and pass it."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
