"""The library on a terminal: python -m flaxattn COMMAND, where --help lists the commands."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from flaxattn import __version__
from flaxattn.commands import cam, compare, convert, describe, export, listing, predict
from flaxattn.errors import InputError


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
    for command in (listing, describe, convert, predict, cam, compare, export):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
