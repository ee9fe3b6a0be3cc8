"""Sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow."""

import difflib
import functools
import logging
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from flaxattn.data.digits import EMBEDDED, prepare
from flaxattn.data.records import ANNOTATIONS, Objects, Record, classes_present
from flaxattn.errors import InputError, shown, unknown
from flaxattn.images.decoding import decode_mask, image_size

log = logging.getLogger("flaxattn")

# In bytes. Getting at a record in a file costs as much as decoding an image of a few pixels, and
# so small a set is read in no time.
HELD_IN_MEMORY = 2**20

# Of TFDS's VOC: the classes of objects that are not difficult, beside its "labels" of all.
_CLEAR = "labels_no_difficult"


class TfdsSource:
    """One split of a TFDS set prepared as array_record, read without TensorFlow.

    An image's class is a feature of kind ClassLabel, its classes a Sequence of these, its objects a
    Sequence of dicts with a BBoxFeature `bbox` and a ClassLabel `label`, its mask a LabeledImage.
    Objects that say whether one `is_difficult` follow VOC, which counts pixels from 1: 1 is taken
    off their left and top. `voc` has its classes twice, with and without difficult objects: one of
    difficult objects alone is `IGNORED`. Left out is an object whose box has no area, as `coco` has
    one. The first to be read is logged, for their number would take reading them all.

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
        self._image_key, self._key = _keys(name, builder.info, annotation)
        splits = list(builder.info.splits)
        for part in split.split("+"):
            if (split_name := part.split("[")[0]) not in (*splits, "all"):
                raise unknown(f"split of {name}:", split_name, splits)
        encoded = {self._image_key: tfds.decode.SkipDecoding()}
        if annotation == "masks":
            encoded[self._key] = tfds.decode.SkipDecoding()
        try:
            self._examples = builder.as_data_source(
                split, decoders=encoded, file_format="array_record"
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
        self._annotation = annotation
        self._all_have_had_area = True
        self.class_names = _class_names(builder.info.features[self._key], annotation) or ()

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
        record: Record = {"image": example[self._image_key], "name": f"{self._title}[{index}]"}
        value = example[self._key]
        if self._annotation == "objects":
            record["objects"] = self._objects(value, record, index)
        elif self._annotation == "masks":
            record["mask"] = decode_mask(
                value, num_classes=self.num_classes, name=f"the mask of {record['name']}"
            )
        else:
            several = self._annotation == "classes"
            labels = _known(np.asarray(value), record)
            record["label"] = self._present(labels, example) if several else int(labels)
        return record

    def _present(self, labels: np.ndarray, example: dict[str, Any]) -> np.ndarray:
        all_labels = example.get("labels", labels) if self._key == _CLEAR else labels
        return classes_present(labels, np.asarray(all_labels), self.num_classes)

    def _objects(self, found: dict[str, Any], record: Record, index: int) -> Objects:
        height, width = image_size(record["image"], name=record["name"])
        relative = np.asarray(found["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
        # To a thousandth of a pixel: as the annotations had it before it was divided by the size.
        boxes = np.round(relative * [width, height, width, height], 3)
        if "is_difficult" in found:
            boxes[:, :2] -= 1
        difficult = found.get("is_difficult", found.get("is_crowd", np.zeros(len(boxes))))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if self._all_have_had_area and not kept.all():
            self._all_have_had_area = False
            log.warning("%s has an object without area: all such are left out", record["name"])
        return {
            "boxes": boxes[kept].astype(np.float32),
            "labels": _known(np.asarray(found["label"], np.int32), record)[kept],
            "difficult": np.asarray(difficult, bool)[kept],
            "image_id": index,
        }


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
    except ValueError as error:
        raise InputError(
            f"name={shown(name)} cannot be a TFDS set's: use such as 'cifar10' or 'cifar10:3.0.2'."
        ) from error


def _prepare_command(name: str, data_dir: str) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"tfds build {name} --file_format=array_record{where}"


def _keys(name: str, info: tfds.core.DatasetInfo, annotation: str) -> tuple[str, str]:
    """The names of the image and of its annotation."""
    features = info.features
    pictures = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    images = [key for key in pictures if not isinstance(features[key], tfds.features.LabeledImage)]
    keys = [key for key, kind in features.items() if _class_names(kind, annotation) is not None]
    chosen = (*(info.supervised_keys or ())[:2], _CLEAR)
    images = [key for key in images if key in chosen] or images
    keys = [key for key in keys if key in chosen] or keys
    if not len(images) == len(keys) == 1:
        kinds = ", ".join(f"{key}: {type(kind).__name__}" for key, kind in sorted(features.items()))
        raise InputError(
            f"the data set {name!r} does not say which image has which {annotation} (its features "
            f"are {kinds}): choose a set for {ANNOTATIONS[annotation]}."
        )
    return images[0], keys[0]


def _class_names(kind: tfds.features.FeatureConnector, annotation: str) -> tuple[str, ...] | None:
    """The classes of a feature of this kind, or None if it is no such annotation."""
    classes = kind
    if annotation in ("classes", "objects"):
        classes = kind.feature if isinstance(kind, tfds.features.Sequence) else None
    if annotation == "objects":
        fields = classes if isinstance(classes, tfds.features.FeaturesDict) else {}
        boxes = "bbox" in fields and isinstance(fields["bbox"], tfds.features.BBoxFeature)
        classes = fields["label"] if boxes and "label" in fields else None
    wanted = tfds.features.LabeledImage if annotation == "masks" else tfds.features.ClassLabel
    return tuple(classes.names) if isinstance(classes, wanted) else None


def _known(labels: np.ndarray, record: Record) -> np.ndarray:
    if np.any(labels < 0):
        raise InputError(
            f"{record['name']} has no label, as test splits often do: use another split."
        )
    return labels
