"""Figures and columns for a terminal."""

import math
from collections.abc import Iterable


def mmacs(macs: int) -> str:
    """Multiply-adds in millions, with three digits."""
    millions = macs / 1e6
    return f"{millions:,.{max(0, 2 - math.floor(math.log10(millions)))}f}" if macs else "0"


def aligned(lines: Iterable[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> list[str]:
    """Lines of cells as text in columns, those in `right` flush right."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
