"""COCO's layout of a data set: a folder of images and one JSON file of all their objects."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxattn.data.coco_masks import covered, pycocotools
from flaxattn.data.records import ANNOTATIONS, IGNORED, Objects, Record, classes_of, read_file
from flaxattn.errors import InputError, unknown

log = logging.getLogger("flaxattn")

_PREFIX = "instances_"


class CocoSource:
    """The images of root/SPLIT and their objects in root/annotations/instances_SPLIT.json.

    Labels count the categories in the order of their ids, without gaps: COCO's 80 from 0 to 79.
    Crowds (`iscrowd`) are difficult objects. Boxes are cut at the image's edge; an object without
    area is left out, as in torchvision's recipe (COCO's own train2017 has one), and their number is
    logged. An image may have no objects. What is learnt, by `annotation`:
        "objects": all of them.
        "classes": the categories of an image's objects that are no crowds; one of crowds alone is
            `IGNORED`.
        "masks": the classes are `background`, then the categories. Where several objects overlap,
            be they of one category, a pixel has no class, as in torchvision's recipe; nor where
            there is a crowd, which torchvision takes for an object of its category. The recipe
            keeps VOC's categories and larger objects alone; here all count. Needs pycocotools.

    Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv:1405.0312.

    Raises InputError if the JSON file is missing or wrong, for "masks" of more than 254 categories
    or without pycocotools; and when reading, for an image that cannot be read and a segmentation
    that is wrong.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, annotation: str = "objects") -> None:
        if annotation == "class":
            raise InputError(
                f"a COCO folder is not read for {ANNOTATIONS['class']}: use 'objects', 'classes' "
                f"or 'masks'."
            )
        if annotation == "masks":
            pycocotools()
        self._annotation = annotation
        self._folder = Path(root, split)
        self._file = _annotations_file(Path(root), split)
        content = _parsed(self._file)
        try:
            self._read(content)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self._file} does not have COCO's fields ({type(error).__name__}: {error}): "
                f"each of its images needs id, file_name, width and height, of its annotations "
                f"image_id, category_id and bbox (for masks id and segmentation), of its "
                f"categories id and name."
            ) from error

    def _read(self, content: Mapping[str, Any]) -> None:
        images, found = content["images"], content["annotations"]
        categories = sorted(content["categories"], key=lambda category: category["id"])
        background = ("background",) if self._annotation == "masks" else ()
        self.class_names = (*background, *(category["name"] for category in categories))
        if self._annotation == "masks" and self.num_classes > IGNORED:
            raise InputError(
                f"{self._file} has {len(categories)} categories, and masks hold {IGNORED - 1}: "
                f"take some out."
            )
        self._names = [image["file_name"] for image in images]
        self._ids = np.array([image["id"] for image in images], np.int32)
        places = {image["id"]: place for place, image in enumerate(images)}
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        for key, known in (("image_id", places), ("category_id", label_of)):
            if strange := {each[key] for each in found} - known.keys():
                raise InputError(
                    f"{self._file}: annotations have {key}={min(strange)}, which is not among its "
                    f"{'images' if known is places else 'categories'}."
                )
        place = np.array([places[each["image_id"]] for each in found], np.int32)
        pairs = [(image["width"], image["height"]) for image in images]
        sizes = np.array(pairs, np.int32).reshape(-1, 2)
        kept = np.arange(len(found))
        if self._annotation != "masks":
            boxes = _boxes_in(found, sizes[place])
            kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
            if len(kept) < len(found):
                log.warning("%s: %d without area left out", self._file, len(found) - len(kept))
        order = kept[np.argsort(place[kept], kind="stable")]
        if self._annotation == "masks":
            self._sizes = sizes
            self._annotation_ids = [found[i]["id"] for i in order]
            # As text: each worker has them all, and lists of numbers take four times the memory.
            self._segmentations = [json.dumps(found[i]["segmentation"]) for i in order]
        else:
            self._boxes = boxes[order].astype(np.float32)
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
        if self._annotation == "masks":
            record["mask"] = self._mask(index)
        elif self._annotation == "objects":
            record["objects"] = self._objects(index)
        else:
            record["label"] = classes_of(self._objects(index), self.num_classes)
        return record

    def _mask(self, index: int) -> np.ndarray:
        width, height = self._sizes[index].tolist()
        mask = np.zeros((height, width), np.uint8, order="F")  # as pycocotools has its own
        for i in range(*self._starts[index : index + 2]):
            name = f"{self._file}: the segmentation of annotation {self._annotation_ids[i]}"
            pixels = covered(json.loads(self._segmentations[i]), (height, width), name=name)
            value = IGNORED if self._crowds[i] else 1 + self._labels[i]
            np.copyto(mask, np.where(mask == 0, np.uint8(value), np.uint8(IGNORED)), where=pixels)
        return mask

    def _objects(self, index: int) -> Objects:
        own = slice(*self._starts[index : index + 2])
        return {
            "boxes": self._boxes[own],
            "labels": self._labels[own],
            "difficult": self._crowds[own],
            "image_id": int(self._ids[index]),
        }


def _boxes_in(found: Sequence[Mapping[str, Any]], sizes: np.ndarray) -> np.ndarray:
    """The annotations' boxes (n, 4), cut at the edges of images of `sizes` (n, 2)."""
    corner, size = np.array([each["bbox"] for each in found]).reshape(-1, 2, 2).swapaxes(0, 1)
    return np.concatenate([np.clip(edge, 0, sizes) for edge in (corner, corner + size)], axis=1)


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
