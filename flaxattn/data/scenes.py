"""Digit scenes: a small set for detection and segmentation, made on the spot in VOC's layout."""

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tensorflow_datasets.core import constants
from tqdm import tqdm

from flaxattn.data.digits import pixels_and_labels, splits
from flaxattn.data.records import IGNORED
from flaxattn.images.drawing import COLOURS
from flaxattn.images.geometry import interpolate

log = logging.getLogger("flaxattn")

# Of the pictures: with another version a prepared set is made anew.
VERSION = "1.1.0"
COUNTS = {"train": 4000, "val": 200}

SIDES = (96, 128)  # of pictures, in pixels
DIGIT_SIDES = (14, 48)
MOST_DIGITS = 6
# Of the smaller of two digits' squares, how much the other may cover.
MOST_OVERLAP = 0.3
# Difficult is a digit of a smaller square, or of which less is to be seen.
CLEAR_SIDE = 16
CLEAR_SHARE = 0.75


class Square(NamedTuple):
    """Where in a picture a digit is drawn, in pixels."""

    top: int
    left: int
    side: int

    @property
    def window(self) -> tuple[slice, slice]:
        return (
            slice(self.top, self.top + self.side),
            slice(self.left, self.left + self.side),
        )

    def overlap(self, other: "Square") -> float:
        """What the two share, as a part of the smaller one."""
        rows, columns = (
            min(mine + self.side, its + other.side) - max(mine, its)
            for mine, its in zip(self[:2], other[:2], strict=True)
        )
        return max(0, rows) * max(0, columns) / min(self.side, other.side) ** 2


class Digit(NamedTuple):
    """A digit in a scene: its class, what of the picture it is (bool (H, W)), and whether clear."""

    label: int
    pixels: np.ndarray
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """VOC's xmin, ymin, xmax, ymax: the first and last pixels of its ink, counted from 1."""
        rows, columns = (np.flatnonzero(self.pixels.any(axis)) + 1 for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


class Scene(NamedTuple):
    """A picture uint8 (H, W, 3), its digits, and the pixels (H, W) at which an edge is blurred."""

    picture: np.ndarray
    digits: list[Digit]
    edges: np.ndarray


def prepare(data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of the scenes below `data_dir` (None or "": TFDS's own), written if need be.

    It is written beside its place and moved there in one step, as `flaxattn.data.digits` does.
    """
    folder = Path(data_dir or constants.DATA_DIR, "scenes", VERSION)
    if folder.exists():
        return folder
    log.info("drawing %s pictures of digits in %s", f"{sum(COUNTS.values()):,}", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix="incomplete.", dir=folder.parent))
    try:
        write(beside / VERSION)
        (beside / VERSION).rename(folder)
    except OSError:
        # Another process may have moved its own copy there first; that one is as good.
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(beside)
    return folder


def write(root: Path, counts: dict[str, int] | None = None) -> None:
    """Writes scenes as VOC2012 is laid out, `COUNTS` of them or as many of "train" and "val".

    A picture has 1 to 6 of scikit-learn's handwritten digits on a textured ground; those of "val"
    are made of digits from the test split alone. The n-th of a split is always the same, whatever
    the counts. Masks have a digit's class (the digit plus one), or in SegmentationObject its
    number, 0 on the ground and 255 at the edges.
    """
    counts = counts or COUNTS
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / name).mkdir(parents=True)
    images, labels = pixels_and_labels()
    of_split = {"train": splits()["train"], "val": splits()["test"]}
    (root / "classes.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    listed: dict[str, list[str]] = {"trainval": []}
    for seed, split in enumerate(("train", "val")):
        listed[split] = [f"{split}_{index:06}" for index in range(counts[split])]
        listed["trainval"] += listed[split]
        names = tqdm(listed[split], desc=f"drawing {split}", unit="picture", disable=None)
        for index, name in enumerate(names):
            random = np.random.RandomState([seed, index])
            chosen = random.choice(of_split[split], random.randint(1, MOST_DIGITS + 1))
            _write_scene(root, name, draw(random, images[chosen], labels[chosen]))
    for kind, split in itertools.product(("Main", "Segmentation"), listed):
        file = root / "ImageSets" / kind / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name}\n" for name in listed[split]))


def draw(random: np.random.RandomState, images: np.ndarray, labels: np.ndarray) -> Scene:
    """A scene of these digits, (n, 8, 8) uint8, later ones in front.

    Left out is a digit for which there is no room, or of which nothing is to be seen.
    """
    height, width = random.randint(SIDES[0], SIDES[1] + 1, 2).tolist()
    picture = _ground(random, height, width)
    # Ink is lighter than all of the ground, or darker.
    light = bool(random.randint(2))
    edges = np.zeros((height, width), bool)
    drawn: list[tuple[int, np.ndarray, int]] = []
    places: list[Square] = []
    for image, label in zip(images, labels.tolist(), strict=True):
        place = _place(random, height, width, places)
        if place is None:
            continue
        places.append(place)
        ink = interpolate(image[..., None] / np.float32(255), place.side, place.side)
        colour = random.uniform(190, 255, 3) if light else random.uniform(0, 65, 3)
        ground = picture[place.window]
        ground += ink * (colour.astype(np.float32) - ground)
        inside, pixels = ink[..., 0] > 0.5, np.zeros((height, width), bool)
        pixels[place.window] = inside
        for _, below, _ in drawn:
            below[place.window] &= ~inside
        edges[place.window] = (edges[place.window] | (ink[..., 0] > 0.2)) & ~inside
        drawn.append((label, pixels, int(inside.sum())))
    digits = [
        Digit(label, pixels, place.side < CLEAR_SIDE or pixels.sum() < CLEAR_SHARE * whole)
        for (label, pixels, whole), place in zip(drawn, places, strict=True)
        if pixels.any()
    ]
    return Scene(np.round(picture).astype(np.uint8), digits, edges)


def _ground(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Soft blotches and fine grain around a middle grey, float32 (H, W, 3) of 70 to 185."""
    blotches = random.uniform(85, 170, (5, 5, 3)).astype(np.float32)
    grain = random.uniform(-15, 15, (height, width, 1)).astype(np.float32)
    return interpolate(blotches, height, width) + grain


def _place(
    random: np.random.RandomState, height: int, width: int, others: list[Square]
) -> Square | None:
    """A square that covers little of the others, of twenty tries."""
    for _ in range(20):
        side = random.randint(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1)
        square = Square(random.randint(height - side + 1), random.randint(width - side + 1), side)
        if all(square.overlap(other) <= MOST_OVERLAP for other in others):
            return square
    return None


def _write_scene(root: Path, name: str, scene: Scene) -> None:
    # Next to no loss: what a digit looks like does not hang on the JPEG library.
    picture = Image.fromarray(scene.picture)
    picture.save(root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
    classes = [digit.label + 1 for digit in scene.digits]
    numbers = range(1, len(scene.digits) + 1)
    for folder, values in (("SegmentationClass", classes), ("SegmentationObject", numbers)):
        _save_mask(root / folder / f"{name}.png", scene, values)
    tree = ElementTree.ElementTree(_annotation(name, scene))
    ElementTree.indent(tree, "\t")
    tree.write(root / "Annotations" / f"{name}.xml")


def _save_mask(file: Path, scene: Scene, values: Iterable[int]) -> None:
    mask = np.where(scene.edges, IGNORED, 0).astype(np.uint8)
    for digit, value in zip(scene.digits, values, strict=True):
        mask[digit.pixels] = value
    image = Image.fromarray(mask)
    image.putpalette(COLOURS.tobytes())
    image.save(file)


def _annotation(name: str, scene: Scene) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    height, width = scene.picture.shape[:2]
    _add(root, {"folder": "VOC2012", "filename": f"{name}.jpg"})
    _add(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _add(root, {"segmented": 1})
    for digit in scene.digits:
        element = ElementTree.SubElement(root, "object")
        difficult = int(digit.difficult)
        _add(element, {"name": digit.label, "pose": "Unspecified", "truncated": 0})
        _add(element, {"difficult": difficult})
        edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), digit.box, strict=True))
        _add(ElementTree.SubElement(element, "bndbox"), edges)
    return root


def _add(parent: ElementTree.Element, texts: Mapping[str, object]) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)
