"""python -m flaxattn cam: where image files show it."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from flaxattn.commands.arguments import SOURCE, add_model, model_of, names_of, network_of
from flaxattn.errors import InputError
from flaxattn.images.preprocessing import pixels_of
from flaxattn.inspect import METHODS
from flaxattn.inspect.cam_picture import write_picture
from flaxattn.inspect.explanation import explain
from flaxattn.weights.kinds import CLASSIFIER, kind_of


def add(commands: Any) -> None:
    seeing = commands.add_parser("cam", help="a picture of where image files show their classes")
    seeing.add_argument("images", nargs="+", metavar="image")
    seeing.add_argument("--weights", required=True, metavar="SOURCE", help=SOURCE)
    add_model(seeing)
    seeing.add_argument("--method", default="grad_cam", help=", ".join(METHODS))
    seeing.add_argument("--layer", help="such as layer3_1 (default: the last stage's last block)")
    seeing.add_argument("--classes", help="numbers or names, as 3,cat (default: the likeliest)")
    seeing.add_argument("--top", type=int, default=3, help="how many of the likeliest")
    seeing.add_argument("--labels", type=Path, help="a file with a class's name on each line")
    seeing.add_argument("--out", default="cam.png", help="the picture: .png, .pdf, .svg")
    seeing.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    checkpoint, name, model = model_of(given, given.weights)
    if (kind := kind_of(name)) is not CLASSIFIER:
        raise InputError(
            f"{name} is a {kind.word}, and this is for classifiers: call "
            f"flaxattn.inspect.class_activation_maps (docs/maps.md)."
        )
    _, variables, preprocessing = network_of(given, checkpoint, name, model)
    images = np.stack([preprocessing(image) for image in given.images])
    explanations = explain(
        model,
        variables,
        images,
        method=given.method,
        layer=given.layer,
        classes=None if given.classes is None else given.classes.split(","),
        top=given.top,
        names=names_of(given, checkpoint.config),
        several=checkpoint.config.get("task") == "multilabel",
    )
    pixels = pixels_of(images, mean=preprocessing.mean, std=preprocessing.std)
    write_picture(given.out, pixels, explanations)
    print(given.out)
