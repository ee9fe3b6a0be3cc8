"""python -m flaxattn list: all mechanisms, or all models."""

import argparse
from typing import Any

from flaxattn.errors import unknown
from flaxattn.inspect import catalogue
from flaxattn.models import LISTED
from flaxattn.weights.kinds import all_names


def add(commands: Any) -> None:
    listing = commands.add_parser("list", help="all attention mechanisms, a line each")
    listing.add_argument("--costs", action="store_true", help="count parameters and multiply-adds")
    listing.add_argument("--markdown", action="store_true", help="the page docs/mechanisms.md")
    listing.add_argument(
        "--models", nargs="?", const="", metavar="PART", help="models, whose names have this part"
    )
    listing.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    if given.models is None:
        print(catalogue.markdown() if given.markdown else catalogue.text(costs=given.costs))
        return
    found = [name for name in all_names() if given.models in name]
    if not found:
        raise unknown("part of models' names", given.models, all_names(), listed=LISTED)
    print("\n".join(found))
