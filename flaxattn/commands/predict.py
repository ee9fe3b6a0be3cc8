"""python -m flaxattn predict: what image files show."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flaxattn.commands.arguments import (
    SOURCE,
    add_model,
    model_of,
    names_of,
    network_of,
    refuse,
    stated,
)
from flaxattn.prediction import detect, predict, segment
from flaxattn.prediction.inputs import names_for
from flaxattn.prediction.report import (
    Report,
    of_classes,
    of_objects,
    of_pixels,
    write_picture,
)
from flaxattn.weights import Network
from flaxattn.weights.kinds import CLASSIFIER, DETECTOR, SEGMENTER, kind_of


def add(commands: Any) -> None:
    predicting = commands.add_parser(
        "predict", help="the classes of image files, the objects in them, or a class for each pixel"
    )
    predicting.add_argument("images", nargs="+", metavar="image")
    predicting.add_argument("--weights", required=True, metavar="SOURCE", help=SOURCE)
    add_model(predicting)
    predicting.add_argument("--top", type=int, help="how many classes of a classifier (5)")
    predicting.add_argument("--threshold", type=float, help="least score of a detector (0.5)")
    predicting.add_argument(
        "--labels",
        type=Path,
        help="a file with a class's name on each line; a detector's begins after the background",
    )
    predicting.add_argument(
        "--out", metavar="DIR", help="where pictures with boxes or classes are written"
    )
    predicting.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    checkpoint, name, model = model_of(given, given.weights)
    word = kind_of(name).word
    for flag, words in _FLAGS_OF.items():
        if word not in words:
            whose = " and ".join(f"{one}s" for one in words)
            refuse({flag: getattr(given, flag)}, f"{name} is a {word}, and this is for {whose}")
    network = network_of(given, checkpoint, name, model)
    reports = _REPORTS[word](given, network, checkpoint.config)
    for image, report in zip(given.images, reports, strict=True):
        print(image)
        for line in report.lines:
            print(f"  {line}")
        if given.out is not None:
            print(f"  {write_picture(given.out, image, report)}")


def _classes(
    given: argparse.Namespace, network: Network, config: Mapping[str, Any]
) -> Iterable[Report]:
    model, variables, preprocessing = network
    several = config.get("task") == "multilabel"
    options = {"classes": names_of(given, config), "several": several, **stated(top=given.top)}
    found = predict(model, variables, given.images, preprocessing=preprocessing, **options)
    return map(of_classes, found)


def _objects(
    given: argparse.Namespace, network: Network, config: Mapping[str, Any]
) -> Iterable[Report]:
    model, variables, preprocessing = network
    options = {"classes": names_of(given, config), **stated(threshold=given.threshold)}
    found = detect(model, variables, given.images, preprocessing=preprocessing, **options)
    return map(of_objects, found)


def _pixels(
    given: argparse.Namespace, network: Network, config: Mapping[str, Any]
) -> Iterable[Report]:
    model, variables, preprocessing = network
    names = names_for(names_of(given, config), model.num_classes)
    found = segment(model, variables, given.images, preprocessing=preprocessing)
    return (of_pixels(classes, names) for classes in found)


_REPORTS = {CLASSIFIER.word: _classes, DETECTOR.word: _objects, SEGMENTER.word: _pixels}
# Whose flags these are.
_FLAGS_OF = {
    "top": (CLASSIFIER.word,),
    "threshold": (DETECTOR.word,),
    "out": (DETECTOR.word, SEGMENTER.word),
}
