"""Images in folders that are named as their classes."""

import os
from collections.abc import Sequence
from pathlib import Path

from flaxattn.data.records import Record, read_file
from flaxattn.errors import InputError, unknown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FolderSource:
    """The images of root/split/class/*.jpg, .jpeg or .png; classes are the sorted folder names.

    Passed over are hidden files and folders, and whatever is named as an image and is no file: a
    folder, a link to nothing. Raises InputError if the root or the split is missing, has no class
    folders, or has one without images; when reading, for a file that cannot be read.
    """

    def __init__(self, root: str | os.PathLike, split: str) -> None:
        layout = "root/train/<class>/*.jpg, .jpeg or .png"
        if not os.path.isdir(root):
            raise InputError(
                f"there is no folder {str(root)!r}: give data_dir the root of {layout}."
            )
        splits = _folders(Path(root))
        if not splits:
            raise InputError(f"{str(root)!r} holds no folders: lay it out as {layout}.")
        if split not in splits:
            raise unknown(f"split of {root}:", split, splits)
        folder = Path(root, split)
        self.class_names = tuple(_folders(folder))
        if not self.class_names:
            raise InputError(f"{str(folder)!r} has no class folders: lay it out as {layout}.")
        self._files: list[str] = []
        self._labels: list[int] = []
        for label, class_name in enumerate(self.class_names):
            files = _images(folder / class_name)
            if not files:
                raise InputError(
                    f"the class folder {str(folder / class_name)!r} holds no image: put "
                    f"{', '.join(IMAGE_SUFFIXES)} files there or remove it."
                )
            self._files += files
            self._labels += [label] * len(files)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        file = self._files[index]
        return {"image": read_file(file), "label": self._labels[index], "name": file}


def _folders(parent: Path) -> list[str]:
    return sorted(e.name for e in _entries(parent) if e.is_dir())


def _images(folder: Path) -> Sequence[str]:
    return sorted(
        entry.path
        for entry in _entries(folder)
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()
    )


def _entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds that is not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be read ({error.strerror}): make it readable."
        ) from error
