"""python -m flaxattn describe: what one mechanism or network is, and what it costs."""

import argparse
import difflib
from typing import Any

from flaxattn.attention import ATTENTION
from flaxattn.commands.arguments import refuse, value_of
from flaxattn.errors import InputError, require_range, unknown
from flaxattn.inspect import article, catalogue
from flaxattn.inspect.network import describe_network
from flaxattn.models import LISTED
from flaxattn.weights.kinds import all_names, kind_of

_SLOTS = ("attention", "conv", "context")


def add(commands: Any) -> None:
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
    describing.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    if given.article == (given.name is not None):
        raise InputError("describe takes a name, or --article instead of it.")
    slots = {slot: text for slot in _SLOTS if (text := getattr(given, slot)) is not None}
    if given.article:
        own = {"features": given.features, "size": given.size, **slots}
        refuse(own, "the article's networks have their own")
        print(article.text(repeats=given.repeats or 0))
        return
    refuse({"repeats": given.repeats}, "only --article is timed")
    models = all_names()
    if given.name in models:
        refuse({"features": given.features}, f"{given.name} is a model, which has its own")
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
    refuse(slots, f"{given.name} is a mechanism, and only models have slots")
    print(text)


def _placement(text: str) -> Any:
    """The placement in a text such as se or name=se,stages=3+4,reduction=8.

    False stands for none, None for the model's own.
    """
    if text in ("False", "None"):
        return value_of(text)
    fields: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        if not equals:
            field, value = "name", part
        values = tuple(map(value_of, value.split("+")))
        fields[field] = values[0] if len(values) == 1 else values
    return fields
