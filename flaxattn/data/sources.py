"""Random-access sources of labelled, still encoded images: prepared TFDS sets and class folders."""

import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from flaxattn.data.digits import EMBEDDED, prepare
from flaxattn.errors import InputError, unknown

# What a task may learn of an image, in words.
ANNOTATIONS = {"class": "image classification", "classes": "multi-label classification"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# In bytes. Getting at a record in a file costs as much as decoding an image of a few pixels, and
# so small a set is read in no time.
HELD_IN_MEMORY = 2**20


class Record(TypedDict):
    """One undecoded example.

    Fields:
        image: encoded bytes.
        label: the index of its class or, where it may have several, uint8 (K,): 1 for each it has.
        name: what to call it in an error.
    """

    image: bytes
    label: int | np.ndarray
    name: str


class Source(Protocol):
    """Random access to the records of one split; safe to read from threads and to pickle."""

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(config: Mapping[str, Any], split: str, *, annotation: str = "class") -> Source:
    """The source that a config asks for.

    Args:
        config: `source` ("tfds" or "folder"), `name` (a TFDS name such as "digits",
            "imagenet2012" or "cifar10:3.0.2"; not used by "folder") and `data_dir` (where TFDS
            keeps its sets, "" for TFDS's default; the root of the folders).
        split: a TFDS split, slices included ("train[:90%]"), or the name of a folder below the
            root.
        annotation: a key of ANNOTATIONS: "class" for images of one class, "classes" for images of
            any number of classes, which only TFDS sets have.

    The EMBEDDED sets are prepared on the spot if need be; all others must lie on this machine.

    Raises InputError for anything that is not there, saying what is or how to get it.
    """
    kind = config["source"]
    if kind not in _SOURCES:
        raise unknown("source", kind, _SOURCES)
    return _SOURCES[kind](config, split, annotation)


def require_same_classes(train: Source, evaluation: Source) -> None:
    """InputError unless both sources have the same classes, so that labels mean the same."""
    if train.class_names == evaluation.class_names:
        return
    missing = sorted(set(train.class_names) - set(evaluation.class_names))
    extra = sorted(set(evaluation.class_names) - set(train.class_names))
    differences = [
        f"{len(names)} only in {where} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for names, where in ((missing, "training"), (extra, "evaluation"))
        if names
    ]
    raise InputError(
        f"the classes of the training and evaluation data differ: "
        f"{' and '.join(differences) or 'the same names in another order'}; "
        f"give both splits the same classes."
    )


class TfdsSource:
    """One split of a TFDS set prepared as array_record, read without TensorFlow.

    An image's class is a feature of kind ClassLabel, its classes a Sequence of these.

    Raises InputError if the set is not prepared, is prepared in another file format, has no image
    with such an annotation, or has no such split.
    """

    def __init__(
        self, name: str, split: str, *, data_dir: str = "", annotation: str = "class"
    ) -> None:
        options = {"data_dir": data_dir, "annotation": annotation}
        self._reopen = (functools.partial(TfdsSource, **options), (name, split))
        builder = _prepared_builder(name, data_dir)
        formats = {str(form.value) for form in builder.info.available_file_formats()}
        if "array_record" not in formats:
            again = "" if name in EMBEDDED else f" and run `{_prepare_command(name, data_dir)}`"
            raise InputError(
                f"the data set {name!r} is prepared as {', '.join(sorted(formats))}, and only "
                f"array_record can be read in any order: delete {builder.data_dir}{again}."
            )
        image_key, label_key, classes = _supervised_keys(name, builder.info, annotation)
        splits = list(builder.info.splits)
        for part in split.split("+"):
            if (split_name := part.split("[")[0]) not in (*splits, "all"):
                raise unknown(f"split of {name}:", split_name, splits)
        try:
            self._examples = builder.as_data_source(
                split, decoders={image_key: tfds.decode.SkipDecoding()}, file_format="array_record"
            )
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"split {split!r} of {name!r} cannot be read ({reason}): use one of "
                f"{', '.join(splits)} or a slice such as '{splits[0]}[:90%]' that is not empty."
            ) from error
        if builder.info.dataset_size < HELD_IN_MEMORY:
            self._examples = list(self._examples)
        self._title = f"{builder.info.name}/{split}"
        self._image_key, self._label_key = image_key, label_key
        self._several = annotation == "classes"
        self.class_names = tuple(classes.names)

    def __reduce__(self) -> tuple:
        # Worker processes open the files themselves instead of unpickling TFDS's objects.
        return self._reopen

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        example = self._examples[index]
        name = f"{self._title}[{index}]"
        labels = np.asarray(example[self._label_key])
        if np.any(labels < 0):
            raise InputError(f"{name} has no label, as test splits often do: use another split.")
        label: int | np.ndarray
        if self._several:
            label = np.isin(np.arange(self.num_classes), labels).astype(np.uint8)
        else:
            label = int(labels)
        return {"image": example[self._image_key], "label": label, "name": name}


class FolderSource:
    """The images of root/split/class/*.jpg, .jpeg or .png; classes are the sorted folder names.

    Passed over are hidden files and folders, and whatever is named as an image and is no file: a
    folder, a link to nothing. Raises InputError if the root or the split is missing, has no class
    folders, or has one without images; when reading, for a file that cannot be read.
    """

    def __init__(self, root: str | os.PathLike, split: str) -> None:
        layout = "root/train/<class>/*.jpg, .jpeg or .png"
        if not root or not Path(root).is_dir():
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
        try:
            image = Path(file).read_bytes()
        except OSError as error:
            # Not "remove it": with another set of files, a run that goes on has another order.
            raise InputError(
                f"{file} cannot be read ({error.strerror or error}): make it readable or put it "
                f"back."
            ) from error
        return {"image": image, "label": self._labels[index], "name": file}


def _open_tfds(config: Mapping[str, Any], split: str, annotation: str) -> Source:
    data_dir = os.path.expanduser(config["data_dir"])
    return TfdsSource(config["name"], split, data_dir=data_dir, annotation=annotation)


def _open_folder(config: Mapping[str, Any], split: str, annotation: str) -> Source:
    if annotation != "class":
        raise InputError(
            f"a folder per class is no data for {ANNOTATIONS[annotation]}: use a TFDS set "
            f"(data.source='tfds') whose images have a sequence of classes."
        )
    return FolderSource(os.path.expanduser(config["data_dir"]), split)


_SOURCES = {"tfds": _open_tfds, "folder": _open_folder}


def _prepared_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    if name in EMBEDDED:
        return prepare(data_dir, name=name)
    try:
        # From the files alone: no code of the data set, no TensorFlow, no network.
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        plain_name = name.split("/")[0].split(":")[0]
        doubt = ""
        if plain_name not in known:
            nearest = difflib.get_close_matches(plain_name, known, n=3)
            doubt = "; TFDS has none of this name" + (
                f", did you mean {' or '.join(nearest)}?" if nearest else ""
            )
        where = f"in {data_dir!r}" if data_dir else "in TFDS's data folder"
        raise InputError(
            f"the data set {name!r} is not prepared {where}: prepare it with "
            f"`{_prepare_command(name, data_dir)}` (which needs TensorFlow, on any machine) or "
            f"set data_dir to where it is{doubt}"
        ) from error


def _prepare_command(name: str, data_dir: str) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"tfds build {name} --file_format=array_record{where}"


def _supervised_keys(
    name: str, info: tfds.core.DatasetInfo, annotation: str
) -> tuple[str, str, tfds.features.ClassLabel]:
    """The names of the image and of its annotation, and the classes of the latter."""
    features = info.features
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    classes = {
        key: kind.feature if isinstance(kind, tfds.features.Sequence) else kind
        for key, kind in features.items()
        if isinstance(kind, tfds.features.Sequence) == (annotation == "classes")
    }
    labels = [key for key, kind in classes.items() if isinstance(kind, tfds.features.ClassLabel)]
    if info.supervised_keys:
        image_key, label_key = info.supervised_keys[:2]
        images = [key for key in images if key == image_key]
        labels = [key for key in labels if key == label_key]
    if not len(images) == len(labels) == 1:
        kinds = ", ".join(f"{key}: {type(kind).__name__}" for key, kind in sorted(features.items()))
        raise InputError(
            f"the data set {name!r} does not say which image has which {annotation} (its features "
            f"are {kinds}): choose a set for {ANNOTATIONS[annotation]}."
        )
    return images[0], labels[0], classes[labels[0]]


def _folders(parent: Path) -> list[str]:
    with os.scandir(parent) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> Sequence[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        )
