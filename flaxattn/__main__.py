"""What the library has, on a terminal: python -m flaxattn list | describe NAME."""

import argparse
import sys
from collections.abc import Sequence

from flaxattn.errors import InputError
from flaxattn.inspect import catalogue


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flaxattn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="all attention mechanisms, a line each")
    listing.add_argument("--markdown", action="store_true", help="the page docs/mechanisms.md")

    describing = commands.add_parser("describe", help="one mechanism in full")
    describing.add_argument("name", help="as `list` shows it")
    describing.add_argument("--features", type=int, default=catalogue.FEATURES, help="channels")
    describing.add_argument("--size", type=int, default=catalogue.SIZE, help="side of the map")

    given = parser.parse_args(arguments)
    try:
        if given.command == "list":
            print(catalogue.markdown() if given.markdown else catalogue.text())
        else:
            print(catalogue.describe(given.name, features=given.features, size=given.size))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
