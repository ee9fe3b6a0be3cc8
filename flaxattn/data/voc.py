"""Pascal VOC's layout of a data set: images, an XML file of objects for each, masks, lists."""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from flaxattn.data.records import Objects, Record, classes_of, read_file
from flaxattn.errors import InputError, unknown
from flaxattn.images.decoding import decode_mask

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


class VocSource:
    """Images in the layout of Pascal VOC, of one list or of several together.

        root/ImageSets/Main/SPLIT.txt           an ID a line; what follows it is passed over
        root/JPEGImages/ID.jpg
        root/Annotations/ID.xml                 of "class", "classes" and "objects"
        root/ImageSets/Segmentation/SPLIT.txt   of "masks", instead of Main
        root/SegmentationClass/ID.png           of "masks": a pixel is its class's number, 0 where
                                                there is none, 255 where it does not count
        root/classes.txt                        a name a line, in the order of the labels; where it
                                                is missing, the classes are VOC's twenty

    What is learnt, by `annotation`:
        "objects": all of them; an image may have none.
        "classes": those with an object that is not difficult. A class of difficult objects alone is
            `IGNORED`, as in VOC's own lists and their evaluation.
        "class": the class of an image whose objects that are not difficult are all of one class;
            the other images are left out. VOC has no such task: the rule is ours.
        "masks": the classes are `background`, then those of the objects.

    Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010.

    Args:
        root: the folder of one year, such as VOCdevkit/VOC2012, or the VOCdevkit around several.
        split: a list such as "train" or, of a VOCdevkit, "VOC2012/train"; several are joined by
            plus signs, as in "VOC2007/trainval+VOC2012/trainval".
        annotation: a key of `ANNOTATIONS`.

    Raises InputError if the root or a list is missing; when reading ("class": at once), for a file
    that cannot be read and for a wrong annotation, with its file and line.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, annotation: str = "objects") -> None:
        self._annotation = annotation
        kind = "Segmentation" if annotation == "masks" else "Main"
        self._images: list[tuple[Path, str]] = []
        names: set[tuple[str, ...]] = set()
        for part in split.split("+"):
            folder, name = _folder_and_list(Path(root), part)
            self._images += [(folder, image) for image in _listed(folder, kind, name)]
            names.add(_class_names(folder))
        if len(names) > 1:
            raise InputError(
                f"the folders of {split!r} have different classes: give them the same classes.txt."
            )
        self._names = names.pop()
        background = ("background",) if annotation == "masks" else ()
        self.class_names = (*background, *self._names)
        if annotation == "class":
            self._keep_images_of_one_class(split)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        folder, image = self._images[index]
        file = folder / "JPEGImages" / f"{image}.jpg"
        record: Record = {"image": read_file(file), "name": str(file)}
        if self._annotation == "class":
            record["label"] = self._labels[index]
        elif self._annotation == "classes":
            record["label"] = classes_of(self._objects(index), self.num_classes)
        elif self._annotation == "objects":
            record["objects"] = self._objects(index)
        else:
            mask = self.mask_file(index)
            record["mask"] = decode_mask(
                read_file(mask), num_classes=self.num_classes, name=str(mask)
            )
        return record

    def mask_file(self, index: int) -> Path:
        """The file of the mask of this record."""
        folder, image = self._images[index]
        return folder / "SegmentationClass" / f"{image}.png"

    def _objects(self, index: int) -> Objects:
        folder, image = self._images[index]
        file = folder / "Annotations" / f"{image}.xml"
        return _Annotation(file).objects(self._names, image_id=index)

    def _clear_labels(self, index: int) -> np.ndarray:
        objects = self._objects(index)
        return objects["labels"][~objects["difficult"]]

    def _keep_images_of_one_class(self, split: str) -> None:
        labels = [set(self._clear_labels(index).tolist()) for index in range(len(self))]
        kept = [index for index, found in enumerate(labels) if len(found) == 1]
        if not kept:
            raise InputError(
                f"no image of split {split!r} has objects of one class alone: learn its classes "
                f"(task='multilabel') instead."
            )
        self._images = [self._images[index] for index in kept]
        self._labels = [labels[index].pop() for index in kept]


def _folder_and_list(root: Path, part: str) -> tuple[Path, str]:
    """The folder of a year and the name of its list, of "train" or "VOC2012/train"."""
    year, _, name = part.rpartition("/")
    if not year and (root / "ImageSets").is_dir():
        return root, name
    years = sorted(path.parent.name for path in root.glob("*/ImageSets"))
    if not years:
        raise InputError(
            f"{str(root)!r} is no VOC folder: give data_dir the folder that holds JPEGImages, "
            f"Annotations and ImageSets, or the VOCdevkit around several."
        )
    if not year and len(years) == 1:
        return root / years[0], name
    if not year:
        raise InputError(
            f"{str(root)!r} holds {', '.join(years)}: say of which the split is, such as "
            f"'{years[-1]}/{part}'."
        )
    if year not in years:
        raise unknown(f"folder of {root}:", year, years)
    return root / year, name


def _listed(folder: Path, kind: str, name: str) -> list[str]:
    """The images of a list. The lists of one class have 1, 0 or -1 behind each: passed over."""
    lists = folder / "ImageSets" / kind
    known = [path.stem for path in lists.glob("*.txt")]
    if not known:
        raise InputError(f"{str(lists)!r} holds no list: put a train.txt of image names there.")
    if name not in known:
        raise unknown(f"split of {folder}:", name, known)
    file = lists / f"{name}.txt"
    images = [line.split()[0] for line in _lines(file) if line.strip()]
    if not images:
        raise InputError(f"{file} lists no image: write an image's name on each line.")
    return images


def _class_names(folder: Path) -> tuple[str, ...]:
    file = folder / "classes.txt"
    if not file.exists():
        return CLASSES
    names = tuple(line.strip() for line in _lines(file) if line.strip())
    if not names or len(set(names)) < len(names):
        raise InputError(f"{file} must have one class a line, and each once.")
    return names


def _lines(file: Path) -> list[str]:
    return read_file(file).decode("utf-8", errors="replace").splitlines()


class _Annotation:
    """An XML file of objects, with the line of each element for errors."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[ElementTree.Element, int] = {}
        builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

        def start(tag: str, attributes: dict[str, str]) -> None:
            self._lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

        parser.StartElementHandler = start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data
        try:
            parser.Parse(read_file(file), True)
        except expat.ExpatError as error:
            raise InputError(
                f"{file}, line {error.lineno}: {expat.ErrorString(error.code)}; put a complete XML "
                f"file in its place."
            ) from error
        self._root = builder.close()

    def objects(self, class_names: Sequence[str], *, image_id: int) -> Objects:
        found = self._root.findall("object")
        boxes = [self._box(element) for element in found]
        return {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array([self._label(element, class_names) for element in found], np.int32),
            "difficult": np.array(
                [element.findtext("difficult", "").strip() == "1" for element in found], bool
            ),
            "image_id": image_id,
        }

    def _label(self, element: ElementTree.Element, class_names: Sequence[str]) -> int:
        name = self._child(element, "name")
        text = (name.text or "").strip()
        if text not in class_names:
            raise unknown(f"class in {self._file}, line {self._lines[name]}:", text, class_names)
        return class_names.index(text)

    def _box(self, element: ElementTree.Element) -> list[float]:
        """VOC counts pixels from 1 and its boxes include the last: 1 comes off left and top."""
        size = self._child(self._root, "size")
        width, height = (self._number(self._child(size, side)) for side in ("width", "height"))
        box = self._child(element, "bndbox")
        left, top, right, bottom = (
            self._number(self._child(box, edge)) for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        if not (1 <= left <= right <= width and 1 <= top <= bottom <= height):
            raise InputError(
                f"{self._file}, line {self._lines[box]}: the box xmin={left:g}, ymin={top:g}, "
                f"xmax={right:g}, ymax={bottom:g} is empty or not inside the image of "
                f"{width:g}x{height:g} pixels: pixels count from 1, and xmax and ymax are inside."
            )
        return [left - 1, top - 1, right, bottom]

    def _child(self, parent: ElementTree.Element, tag: str) -> ElementTree.Element:
        child = parent.find(tag)
        if child is None:
            raise InputError(
                f"{self._file}, line {self._lines[parent]}: <{parent.tag}> has no <{tag}>: add it."
            )
        return child

    def _number(self, element: ElementTree.Element) -> float:
        try:
            return float(element.text or "")
        except ValueError as error:
            raise InputError(
                f"{self._file}, line {self._lines[element]}: <{element.tag}> is "
                f"{element.text!r}, and must be a number."
            ) from error
