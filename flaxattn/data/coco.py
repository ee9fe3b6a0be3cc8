"""COCO's layout of a data set: a folder of images and one JSON file of all their objects."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxattn.data.records import ANNOTATIONS, Objects, Record, classes_of, read_file
from flaxattn.errors import InputError, unknown

log = logging.getLogger("flaxattn")

_PREFIX = "instances_"


class CocoSource:
    """The images of root/SPLIT and their objects in root/annotations/instances_SPLIT.json.

    Labels count the categories in the order of their ids, without gaps: COCO's 80 from 0 to 79.
    Crowds (`iscrowd`) are difficult objects. Boxes are cut at the image's edge; an object without
    area is left out, as in torchvision's recipe (COCO's own train2017 has one), and their number is
    logged. An image may have no objects. `annotation` is "objects" or "classes": the categories of
    an image's objects that are no crowds; one of crowds alone is `IGNORED`.

    Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv:1405.0312.

    Raises InputError if the JSON file is missing or wrong, and when reading, for an image that
    cannot be read.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, annotation: str = "objects") -> None:
        if annotation not in ("objects", "classes"):
            raise InputError(
                f"a COCO folder is read for {ANNOTATIONS['objects']} and {ANNOTATIONS['classes']}, "
                f"and not for {ANNOTATIONS[annotation]}."
            )
        self._annotation = annotation
        self._folder = Path(root, split)
        file = _annotations_file(Path(root), split)
        content = _parsed(file)
        try:
            self._read(content, file)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{file} does not have COCO's fields ({type(error).__name__}: {error}): each of "
                f"its images needs id, file_name, width and height, of its annotations image_id, "
                f"category_id and bbox, of its categories id and name."
            ) from error

    def _read(self, content: Mapping[str, Any], file: Path) -> None:
        images, found = content["images"], content["annotations"]
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.class_names = tuple(category["name"] for category in categories)
        self._names = [image["file_name"] for image in images]
        self._ids = np.array([image["id"] for image in images], np.int32)
        places = {image["id"]: place for place, image in enumerate(images)}
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        for key, known in (("image_id", places), ("category_id", label_of)):
            if strange := {each[key] for each in found} - known.keys():
                raise InputError(
                    f"{file}: annotations have {key}={min(strange)}, which is not among its "
                    f"{'images' if known is places else 'categories'}."
                )
        place = np.array([places[each["image_id"]] for each in found], np.int32)
        sizes = np.array([(image["width"], image["height"]) for image in images]).reshape(-1, 2)
        corner, size = np.array([each["bbox"] for each in found]).reshape(-1, 2, 2).swapaxes(0, 1)
        low, high = (np.clip(edge, 0, sizes[place]) for edge in (corner, corner + size))
        kept = np.flatnonzero((high > low).all(axis=1))
        if len(kept) < len(found):
            log.warning("%s: %d without area left out", file, len(found) - len(kept))
        order = kept[np.argsort(place[kept], kind="stable")]
        self._boxes = np.concatenate([low, high], axis=1)[order].astype(np.float32)
        self._labels = np.array([label_of[each["category_id"]] for each in found], np.int32)[order]
        self._crowds = np.array([each.get("iscrowd", 0) for each in found], bool)[order]
        # The objects of image i are those from starts[i] to starts[i + 1].
        self._starts = np.searchsorted(place[order], np.arange(len(images) + 1))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        file = self._folder / self._names[index]
        record: Record = {"image": read_file(file), "name": str(file)}
        objects = self._objects(index)
        if self._annotation == "objects":
            record["objects"] = objects
        else:
            record["label"] = classes_of(objects, self.num_classes)
        return record

    def _objects(self, index: int) -> Objects:
        own = slice(*self._starts[index : index + 2])
        return {
            "boxes": self._boxes[own],
            "labels": self._labels[own],
            "difficult": self._crowds[own],
            "image_id": int(self._ids[index]),
        }


def _annotations_file(root: Path, split: str) -> Path:
    known = [path.stem.removeprefix(_PREFIX) for path in root.glob(f"annotations/{_PREFIX}*.json")]
    if not known:
        raise InputError(
            f"{str(root)!r} is no COCO folder: give data_dir the folder that holds "
            f"annotations/{_PREFIX}SPLIT.json and the images in SPLIT."
        )
    if split not in known:
        raise unknown(f"split of {root}:", split, known)
    return root / "annotations" / f"{_PREFIX}{split}.json"


def _parsed(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(read_file(file))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}, line {error.lineno}: {error.msg}; put a complete JSON file in its place."
        ) from error
