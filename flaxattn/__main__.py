"""The library on a terminal: python -m flaxattn list | describe | convert | predict."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

from flaxattn.errors import InputError
from flaxattn.inspect import catalogue
from flaxattn.inspect.network import describe_network
from flaxattn.models import MODELS, create_model
from flaxattn.prediction import predict
from flaxattn.weights import (
    Checkpoint,
    Preprocessing,
    class_names,
    fetch,
    load_pretrained,
    read,
    to_torch,
    write,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; answers the exit status."""
    given = command_line().parse_args(arguments)
    run: Callable[[Any], None] = given.run
    try:
        run(given)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def command_line() -> argparse.ArgumentParser:
    """All commands with their arguments; `run` is the function of the one that is given."""
    parser = argparse.ArgumentParser(prog="python -m flaxattn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="all attention mechanisms, a line each")
    listing.add_argument("--markdown", action="store_true", help="the page docs/mechanisms.md")
    listing.set_defaults(run=_list)

    describing = commands.add_parser("describe", help="one mechanism, or a network's, in full")
    describing.add_argument("name", help="of a mechanism, as `list` shows it, or of a model")
    describing.add_argument("--features", type=int, default=catalogue.FEATURES, help="channels")
    describing.add_argument("--size", type=int, help="side of the map (56), or of the image (224)")
    for slot in ("attention", "conv", "context"):
        describing.add_argument(
            f"--{slot}", help=f"{slot} of the model: a name, or name=se,stages=3+4,reduction=8"
        )
    describing.set_defaults(run=_describe)

    converting = commands.add_parser("convert", help="weights of PyTorch to Flax's, and back")
    converting.add_argument("source", help=_SOURCE)
    converting.add_argument("out", type=Path, help="a .safetensors or .npz file")
    _add_model(converting)
    converting.add_argument("--naming", help="of the torch tensors, such as timm (default: found)")
    converting.add_argument("--to", choices=("flax", "torch"), default="flax")
    converting.add_argument("--entry", help="which state dict of a torch file that has several")
    converting.add_argument("--force", action="store_true", help="overwrite OUT")
    converting.set_defaults(run=_convert)

    predicting = commands.add_parser("predict", help="the likeliest classes of image files")
    predicting.add_argument("images", nargs="+", metavar="image")
    predicting.add_argument("--weights", required=True, metavar="SOURCE", help=_SOURCE)
    _add_model(predicting)
    predicting.add_argument("--top", type=int, default=5, help="how many classes")
    predicting.add_argument("--labels", type=Path, help="a file with a class's name on each line")
    predicting.set_defaults(run=_predict)
    return parser


_SOURCE = "a file, a directory, or a Hugging Face repository such as timm/resnet50.a1_in1k"


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="its name (default: the architecture in the config)")
    command.add_argument("--num-classes", type=int, help="(default: the config's, else 1000)")
    command.add_argument("--revision", help="of a repository: branch, tag or commit")
    command.add_argument("--offline", action="store_true", help="use what the cache has")


def _list(given: argparse.Namespace) -> None:
    print(catalogue.markdown() if given.markdown else catalogue.text())


def _describe(given: argparse.Namespace) -> None:
    if given.name not in MODELS:
        size = catalogue.SIZE if given.size is None else given.size
        print(catalogue.describe(given.name, features=given.features, size=size))
        return
    slots: dict[str, Any] = {
        slot: _placement(value)
        for slot in ("attention", "conv", "context")
        if (value := getattr(given, slot)) is not None
    }
    size = 224 if given.size is None else given.size
    model = create_model(given.name, **slots)
    print(describe_network(given.name, model, (1, size, size, 3)))


def _placement(text: str) -> dict[str, Any]:
    """A placement as it is written on a command line: se, or name=se,stages=3+4,reduction=8."""
    fields: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        if not equals:
            field, value = "name", part
        numbers = [int(n) if n.isdecimal() else n for n in value.split("+")]
        fields[field] = _WORDS.get(value, numbers[0] if len(numbers) == 1 else tuple(numbers))
    return fields


_WORDS = {"True": True, "False": False, "None": None}


def _convert(given: argparse.Namespace) -> None:
    checkpoint, model = _model_of(given, given.source)
    input_shape = (1, *Preprocessing.of(checkpoint.config).input_size)
    tensors = read(checkpoint, entry=given.entry)
    loaded = load_pretrained(model, tensors, input_shape, naming=given.naming)
    if given.to == "torch":
        made = to_torch(loaded.variables, given.naming, module=model)
    else:
        made = loaded.variables
    write(given.out, made, config=checkpoint.config, overwrite=given.force)
    print(f"{checkpoint.path} ({loaded.naming}) -> {given.out} ({given.to}), {_size(given.out)}")


def _predict(given: argparse.Namespace) -> None:
    checkpoint, model = _model_of(given, given.weights)
    preprocessing = Preprocessing.of(checkpoint.config)
    loaded = load_pretrained(model, checkpoint, (1, *preprocessing.input_size))
    classes = class_names(checkpoint.config) if given.labels is None else _lines(given.labels)
    found = predict(
        model,
        loaded.variables,
        given.images,
        preprocessing=preprocessing,
        classes=classes,
        top=given.top,
    )
    for image, predictions in zip(given.images, found, strict=True):
        print(image)
        for prediction in predictions:
            print(f"  {prediction.probability:.4f}  {prediction.name}")


def _model_of(given: argparse.Namespace, source: str) -> tuple[Checkpoint, nn.Module]:
    """The checkpoint, and the model that the command line or the checkpoint's config names."""
    checkpoint = fetch(source, revision=given.revision, offline=given.offline)
    name = given.model or checkpoint.config.get("architecture")
    if name is None:
        raise InputError(f"no config says what {source} is of: add --model NAME.")
    classes = given.num_classes
    if classes is None:
        classes = checkpoint.config.get("num_classes", 1000)
    return checkpoint, create_model(name, num_classes=classes)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {path}: {error}.") from error


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
