"""The library on a terminal: python -m flaxattn COMMAND, where --help lists the commands."""

import argparse
import ast
import difflib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxattn import __version__
from flaxattn.attention import ATTENTION
from flaxattn.errors import InputError, require_range, shown, unknown
from flaxattn.images.preprocessing import pixels_of
from flaxattn.inspect import METHODS, article, cam_picture, catalogue
from flaxattn.inspect.explanation import explain
from flaxattn.inspect.network import describe_network
from flaxattn.models import LISTED
from flaxattn.prediction import detect, predict, segment
from flaxattn.prediction.inputs import names_for
from flaxattn.prediction.report import (
    Report,
    of_classes,
    of_objects,
    of_pixels,
    write_picture,
)
from flaxattn.weights import (
    Checkpoint,
    Network,
    class_names,
    fetch,
    load_pretrained,
    to_torch,
    write,
)
from flaxattn.weights.kinds import (
    CLASSIFIER,
    DETECTOR,
    SEGMENTER,
    all_names,
    is_coco_v1,
    kind_of,
    preprocessing_of,
    stated_model,
)
from flaxattn.weights.naming import FLAX, OWN, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    given = command_line().parse_args(arguments)
    run: Callable[[Any], None] = given.run
    try:
        run(given)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def command_line() -> argparse.ArgumentParser:
    """All commands with their arguments; `run` becomes the function of the given one."""
    parser = argparse.ArgumentParser(prog="python -m flaxattn", description=__doc__)
    parser.add_argument("--version", action="version", version=f"flaxattn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="all attention mechanisms, a line each")
    listing.add_argument("--costs", action="store_true", help="count parameters and multiply-adds")
    listing.add_argument("--markdown", action="store_true", help="the page docs/mechanisms.md")
    listing.add_argument(
        "--models", nargs="?", const="", metavar="PART", help="models, whose names have this part"
    )
    listing.set_defaults(run=_list)

    describing = commands.add_parser("describe", help="one mechanism, or a network's, in full")
    describing.add_argument(
        "name", nargs="?", help="of a mechanism, as `list` shows it, or of a model"
    )
    describing.add_argument(
        "--article", action="store_true", help="instead of a name: the networks of article 3"
    )
    describing.add_argument(
        "--repeats", type=int, help="of --article: how often each network is timed"
    )
    describing.add_argument("--features", type=int, help="channels of a mechanism's map (256)")
    describing.add_argument("--size", type=int, help="side of the map (56), or of the image (224)")
    for slot in _SLOTS:
        describing.add_argument(
            f"--{slot}", help=f"{slot} of a model: a name, or name=se,stages=3+4,reduction=8"
        )
    describing.set_defaults(run=_describe)

    converting = commands.add_parser("convert", help="weights of PyTorch to Flax's, and back")
    converting.add_argument("source", help=_SOURCE)
    converting.add_argument(
        "out", type=Path, help="a .safetensors or .npz file; with --to torch .pth too"
    )
    _add_model(converting)
    converting.add_argument("--naming", help="of SOURCE, if torch's, such as timm (default: found)")
    converting.add_argument("--to", choices=("flax", "torch"), default="flax")
    converting.add_argument(
        "--to-naming", help="of OUT with --to torch (default: SOURCE's if torch's, else timm's)"
    )
    converting.add_argument("--entry", help="which state dict of a torch file that has several")
    converting.add_argument("--force", action="store_true", help="overwrite OUT")
    converting.set_defaults(run=_convert)

    predicting = commands.add_parser(
        "predict", help="the classes of image files, the objects in them, or a class for each pixel"
    )
    predicting.add_argument("images", nargs="+", metavar="image")
    predicting.add_argument("--weights", required=True, metavar="SOURCE", help=_SOURCE)
    _add_model(predicting)
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
    predicting.set_defaults(run=_predict)

    seeing = commands.add_parser("cam", help="a picture of where image files show their classes")
    seeing.add_argument("images", nargs="+", metavar="image")
    seeing.add_argument("--weights", required=True, metavar="SOURCE", help=_SOURCE)
    _add_model(seeing)
    seeing.add_argument("--method", default="grad_cam", help=", ".join(METHODS))
    seeing.add_argument("--layer", help="such as layer3_1 (default: the last stage's last block)")
    seeing.add_argument("--classes", help="numbers or names, as 3,cat (default: the likeliest)")
    seeing.add_argument("--top", type=int, default=3, help="how many of the likeliest")
    seeing.add_argument("--labels", type=Path, help="a file with a class's name on each line")
    seeing.add_argument("--out", default="cam.png", help="the picture: .png, .pdf, .svg")
    seeing.set_defaults(run=_cam)

    comparing = commands.add_parser(
        "compare", help="train with each mechanism and without it, from the same seeds"
    )
    comparing.add_argument("--config", metavar="FILE[:ARGUMENT]", help="as configs/digits.py")
    comparing.add_argument(
        "--attention", metavar="NAME,NAME", help="what the config calls them, as none,se,eca"
    )
    comparing.add_argument("--preset", help="a config and mechanisms by one name")
    comparing.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (5)")
    comparing.add_argument("--base", metavar="NAME", help="what to compare with (none)")
    comparing.add_argument(
        "--no-equal-cost", action="store_true", help="without a plain network of equal cost"
    )
    comparing.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="of the config, as epochs=3",
    )
    comparing.add_argument(
        "--workdir", type=Path, default=Path("runs/compare"), help="of all runs (runs/compare)"
    )
    comparing.add_argument("--platform", help="tpu, gpu or cpu: an error if it is not there")
    comparing.set_defaults(run=_compare)
    return parser


_SLOTS = ("attention", "conv", "context")

_SOURCE = (
    "a file, a directory (that of a run of train.py too), or a Hugging Face repository such as "
    "timm/resnet50.a1_in1k"
)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="its name (default: the architecture in the config)")
    command.add_argument(
        "--num-classes",
        type=int,
        help="(default: the config's, else 1000, 21 of a segmenter, 91 of a detector)",
    )
    command.add_argument("--revision", help="of a repository: branch, tag or commit")
    command.add_argument(
        "--other-architecture",
        action="store_true",
        help="load weights of a network with the same tensors that computes something else",
    )
    command.add_argument("--offline", action="store_true", help="use what the cache has")


def _list(given: argparse.Namespace) -> None:
    if given.models is None:
        print(catalogue.markdown() if given.markdown else catalogue.text(costs=given.costs))
        return
    found = [name for name in all_names() if given.models in name]
    if not found:
        raise unknown("part of models' names", given.models, all_names(), listed=LISTED)
    print("\n".join(found))


def _describe(given: argparse.Namespace) -> None:
    if given.article == (given.name is not None):
        raise InputError("describe takes a name, or --article instead of it.")
    slots = {slot: text for slot in _SLOTS if (text := getattr(given, slot)) is not None}
    if given.article:
        own = {"features": given.features, "size": given.size, **slots}
        _refuse(own, "the article's networks have their own")
        print(article.text(repeats=given.repeats or 0))
        return
    _refuse({"repeats": given.repeats}, "only --article is timed")
    models = all_names()
    if given.name in models:
        _refuse({"features": given.features}, f"{given.name} is a model, which has its own")
        size = 224 if given.size is None else given.size
        require_range("size", size, 1, catalogue.LARGEST)
        placements = {slot: _placement(slots[slot]) for slot in slots}
        model = kind_of(given.name).create(given.name, **placements)
        print(describe_network(given.name, model, (1, size, size, 3)))
        return
    features = catalogue.FEATURES if given.features is None else given.features
    size = catalogue.SIZE if given.size is None else given.size
    try:
        text = catalogue.describe(given.name, features=features, size=size)
    except InputError:
        if given.name in ATTENTION or not difflib.get_close_matches(given.name, models):
            raise
        names = {*ATTENTION, *models}
        raise unknown("mechanism or model", given.name, names, listed=LISTED) from None
    _refuse(slots, f"{given.name} is a mechanism, and only models have slots")
    print(text)


def _refuse(flags: dict[str, Any], reason: str) -> None:
    """InputError for flags of models where the name is a mechanism's, and the reverse."""
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"--{flag} {shown(value)}: {reason}; leave it out.")


def _placement(text: str) -> Any:
    """The placement in a text such as se or name=se,stages=3+4,reduction=8.

    False stands for none, None for the model's own.
    """
    if text in ("False", "None"):
        return _value(text)
    fields: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        if not equals:
            field, value = "name", part
        values = tuple(map(_value, value.split("+")))
        fields[field] = values[0] if len(values) == 1 else values
    return fields


def _value(text: str) -> Any:
    """A number, True, False or None where Python reads one; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(given: argparse.Namespace) -> None:
    if given.to_naming is not None and given.to != "torch":
        raise InputError(f"--to-naming {given.to_naming} names torch's tensors: add --to torch.")
    checkpoint, name, model = _model_of(given, given.source)
    if is_coco_v1(name, checkpoint.path):
        raise InputError(
            f"{checkpoint.path} wants an epsilon of 0 in its norms, which {given.out} could not "
            f"say: use the file itself."
        )
    loaded = load_pretrained(
        model,
        checkpoint,
        (1, *preprocessing_of(checkpoint, name).input_size),
        naming=given.naming,
        entry=given.entry,
        other_architecture=given.other_architecture,
    )
    if given.naming is not None and loaded.naming == FLAX:
        raise InputError(
            f"--naming {given.naming} names torch's tensors, but {checkpoint.path} has Flax's: "
            f"leave it out, or name those of {given.out} with --to torch --to-naming."
        )
    made, written = loaded.variables, FLAX
    if given.to == "torch":
        written = given.to_naming or _usual_naming(model, loaded.naming)
        made = to_torch(loaded.variables, written, module=model)
    write(given.out, made, config=checkpoint.config, overwrite=given.force)
    print(f"{checkpoint.path} ({loaded.naming}) -> {given.out} ({written}), {_size(given.out)}")


def _usual_naming(model: Any, read: str) -> str:
    """The source's own naming; for Flax's arrays timm's or torchvision's if one has the model."""
    if read != FLAX:
        return read
    return next((name for name in ("timm", "torchvision") if name in tables(model)), OWN)


def _predict(given: argparse.Namespace) -> None:
    checkpoint, name, model = _model_of(given, given.weights)
    word = kind_of(name).word
    for flag, words in _FLAGS_OF.items():
        if word not in words:
            whose = " and ".join(f"{one}s" for one in words)
            _refuse({flag: getattr(given, flag)}, f"{name} is a {word}, and this is for {whose}")
    preprocessing = preprocessing_of(checkpoint, name)
    loaded = load_pretrained(
        model,
        checkpoint,
        (1, *preprocessing.input_size),
        other_architecture=given.other_architecture,
    )
    network = Network(model, loaded.variables, preprocessing)
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
    options = {"classes": _names(given, config), "several": several, **_stated(top=given.top)}
    found = predict(model, variables, given.images, preprocessing=preprocessing, **options)
    return map(of_classes, found)


def _objects(
    given: argparse.Namespace, network: Network, config: Mapping[str, Any]
) -> Iterable[Report]:
    model, variables, preprocessing = network
    options = {"classes": _names(given, config), **_stated(threshold=given.threshold)}
    found = detect(model, variables, given.images, preprocessing=preprocessing, **options)
    return map(of_objects, found)


def _pixels(
    given: argparse.Namespace, network: Network, config: Mapping[str, Any]
) -> Iterable[Report]:
    model, variables, preprocessing = network
    names = names_for(_names(given, config), model.num_classes)
    found = segment(model, variables, given.images, preprocessing=preprocessing)
    return (of_pixels(classes, names) for classes in found)


_REPORTS = {CLASSIFIER.word: _classes, DETECTOR.word: _objects, SEGMENTER.word: _pixels}
# Whose flags these are.
_FLAGS_OF = {
    "top": (CLASSIFIER.word,),
    "threshold": (DETECTOR.word,),
    "out": (DETECTOR.word, SEGMENTER.word),
}


def _stated(**flags: Any) -> dict[str, Any]:
    """Those that are given; the others have their defaults elsewhere."""
    return {flag: value for flag, value in flags.items() if value is not None}


def _cam(given: argparse.Namespace) -> None:
    checkpoint, name, model = _model_of(given, given.weights)
    if (kind := kind_of(name)) is not CLASSIFIER:
        raise InputError(
            f"{name} is a {kind.word}, and this is for classifiers: call "
            f"flaxattn.inspect.class_activation_maps (docs/maps.md)."
        )
    preprocessing = preprocessing_of(checkpoint, name)
    loaded = load_pretrained(
        model,
        checkpoint,
        (1, *preprocessing.input_size),
        other_architecture=given.other_architecture,
    )
    images = np.stack([preprocessing(image) for image in given.images])
    explanations = explain(
        model,
        loaded.variables,
        images,
        method=given.method,
        layer=given.layer,
        classes=None if given.classes is None else given.classes.split(","),
        top=given.top,
        names=_names(given, checkpoint.config),
        several=checkpoint.config.get("task") == "multilabel",
    )
    pixels = pixels_of(images, mean=preprocessing.mean, std=preprocessing.std)
    cam_picture.write_picture(given.out, pixels, explanations)
    print(given.out)


def _model_of(given: argparse.Namespace, source: str) -> tuple[Checkpoint, str, Any]:
    """The checkpoint, and the name and the model that the command line or its config says."""
    checkpoint = fetch(source, revision=given.revision, offline=given.offline)
    name = given.model or checkpoint.architecture
    if name is None:
        raise InputError(f"no config names the architecture of {source}: add --model NAME.")
    fields = _stated(num_classes=given.num_classes)
    return checkpoint, name, stated_model(checkpoint, given.model, **fields)


def _compare(given: argparse.Namespace) -> None:
    # Imported here: training needs packages that the other commands do without.
    try:
        from flaxattn.inspect import compare, compare_report
        from flaxattn.train.compilation import keep_compiled
        from flaxattn.train.loop import Diverged, Preempted
        from flaxattn.train.report import log_to_stderr
        from flaxattn.train.sharding import require_platform
    except ModuleNotFoundError as error:
        raise InputError(f"compare needs {error.name}: pip install 'flaxattn[train]'.") from error

    asked = {"config": given.config, "attention": given.attention}
    if given.preset is not None:
        _refuse(asked, f"--preset {given.preset} has its own")
        if given.preset not in compare.PRESETS:
            raise unknown("preset", given.preset, compare.PRESETS)
        config, attention = compare.PRESETS[given.preset]
    elif None in asked.values():
        raise InputError("compare takes --config and --attention, or --preset instead of them.")
    else:
        config, attention = given.config, tuple(given.attention.split(","))
    log_to_stderr(level=logging.WARNING)
    compare.log.setLevel(logging.INFO)
    keep_compiled()
    require_platform(given.platform)
    try:
        found = compare.compare(
            config,
            attention,
            workdir=given.workdir,
            seeds=given.seeds,
            base=given.base,
            equal_cost=not given.no_equal_cost,
            fields=dict(_field(text) for text in given.set),
        )
    except Diverged as error:
        raise SystemExit(f"stopped: {error}") from error
    except Preempted as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(128 + 15) from error
    compare_report.write(found, given.workdir)
    print(compare_report.text(found))
    print(f"\n{given.workdir / 'report.html'}")


def _field(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: write FIELD=VALUE, as in --set epochs=3.")
    return field, _value(value)


def _names(given: argparse.Namespace, config: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes' names on the command line or in a checkpoint's config."""
    if given.labels is None:
        return class_names(config)
    try:
        return given.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {given.labels}: {error}.") from error


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
