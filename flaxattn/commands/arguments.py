"""What several commands ask for on the command line."""

import argparse
import ast
from collections.abc import Mapping, Sequence
from typing import Any

from flaxattn.errors import InputError, shown
from flaxattn.weights import Checkpoint, Network, class_names, fetch, load_pretrained
from flaxattn.weights.kinds import preprocessing_of, stated_model

SOURCE = (
    "a file, a directory (that of a run of train.py too), or a Hugging Face repository such as "
    "timm/resnet50.a1_in1k"
)


def add_model(command: argparse.ArgumentParser) -> None:
    """Flags of a network and its weights, as `model_of` reads them."""
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


def model_of(given: argparse.Namespace, source: str) -> tuple[Checkpoint, str, Any]:
    """The checkpoint, and the name and the model that the command line or its config says."""
    checkpoint = fetch(source, revision=given.revision, offline=given.offline)
    name = given.model or checkpoint.architecture
    if name is None:
        raise InputError(f"no config names the architecture of {source}: add --model NAME.")
    fields = stated(num_classes=given.num_classes)
    return checkpoint, name, stated_model(checkpoint, given.model, **fields)


def network_of(given: argparse.Namespace, checkpoint: Checkpoint, name: str, model: Any) -> Network:
    """The model of `model_of` with its variables, and what its images go through."""
    preprocessing = preprocessing_of(checkpoint, name)
    loaded = load_pretrained(
        model,
        checkpoint,
        (1, *preprocessing.input_size),
        other_architecture=given.other_architecture,
    )
    return Network(model, loaded.variables, preprocessing)


def names_of(given: argparse.Namespace, config: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes' names on the command line or in a checkpoint's config."""
    if given.labels is None:
        return class_names(config)
    try:
        return given.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {given.labels}: {error}.") from error


def stated(**flags: Any) -> dict[str, Any]:
    """Those that are given; the others have their defaults elsewhere."""
    return {flag: value for flag, value in flags.items() if value is not None}


def refuse(flags: dict[str, Any], reason: str) -> None:
    """InputError for flags that are given although they do not go with the rest."""
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"--{flag} {shown(value)}: {reason}; leave it out.")


def value_of(text: str) -> Any:
    """A number, True, False or None where Python reads one; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
