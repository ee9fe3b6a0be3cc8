"""Predictions for people: lines of text, and pictures."""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxattn.errors import InputError
from flaxattn.images.decoding import decode, to_pillow
from flaxattn.images.drawing import with_boxes, with_classes, with_names
from flaxattn.prediction.classes import Prediction
from flaxattn.prediction.objects import Detection


class Report(NamedTuple):
    """What is told of an image file.

    Fields:
        lines: of text.
        draw: makes the picture of it, from and to uint8 (H, W, 3).
    """

    lines: list[str]
    draw: Callable[[np.ndarray], np.ndarray]


def of_classes(predictions: Sequence[Prediction]) -> Report:
    """The probability and the name of each class; nothing is drawn."""
    lines = [f"{prediction.probability:.4f}  {prediction.name}" for prediction in predictions]
    return Report(lines, lambda image: image)


def of_objects(found: Sequence[Detection]) -> Report:
    """The score, the name and the box of each object: left, top, right, bottom in pixels."""
    lines = [
        f"{score:.4f}  {name}  {' '.join(f'{edge:.1f}' for edge in box)}"
        for _, name, score, box in found
    ]
    draw = functools.partial(
        with_boxes,
        boxes=np.array([one.box for one in found]).reshape(-1, 4),
        labels=[one.label for one in found],
        captions=[f"{one.name} {one.score:.2f}" for one in found],
    )
    return Report(lines, draw)


def of_pixels(classes: np.ndarray, names: Sequence[str] | None = None) -> Report:
    """The share of the pixels and the name of each class that there is, the largest first.

    Without names, classes have their numbers.
    """
    labels, counts = np.unique(classes, return_counts=True)
    largest_first = np.argsort(-counts, kind="stable")
    words = [str(label) for label in range(256)] if names is None else names
    lines = [f"{counts[i] / classes.size:.4f}  {words[labels[i]]}" for i in largest_first]
    return Report(lines, lambda image: with_names(with_classes(image, classes), classes, words))


def write_picture(folder: str | Path, image: str | Path, report: Report) -> Path:
    """Draws on an image file's picture, writes it into `folder`, and returns its path.

    The folder is made. No file is overwritten: for cat.jpg the picture is cat.png, or else
    cat_2.png and so on.

    Raises InputError where it cannot be written.
    """
    picture = to_pillow(report.draw(decode(image, channels=3)))
    folder, stem = Path(folder), Path(image).stem
    names = itertools.chain([f"{stem}.png"], (f"{stem}_{i}.png" for i in itertools.count(2)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = next(path for name in names if not (path := folder / name).exists())
        picture.save(path)
    except OSError as error:
        raise InputError(f"cannot write a picture to {folder}: {error}.") from error
    return path
