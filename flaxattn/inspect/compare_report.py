"""A comparison for people: a table and sentences, a plot, and a page with all of it."""

import base64
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.figure

from flaxattn.inspect import paired
from flaxattn.inspect.compare import Comparison, Network
from flaxattn.inspect.table import aligned, mmacs
from flaxattn.train.workdir import write_json

# Okabe and Ito's, which people tell apart whatever their colour vision; with the markers, six in
# number, a pair of them comes again after 42.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P")

_COSTS: dict[str, Callable[[Network], float | None]] = {
    "multiply-adds of an image, millions": lambda network: network.spent.macs / 1e6,
    "bytes of an image, millions": lambda network: network.spent.bytes / 1e6,
    "training, images/s": lambda network: network.images_per_second,
}
_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; overflow-wrap: anywhere; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
td, th { padding: .2em .6em; border-bottom: 1px solid #888; text-align: right; }
td { white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
img { width: 100%; min-width: 50em; }"""


def write(comparison: Comparison, folder: str | Path) -> None:
    """Writes comparison.json, comparison.png, and report.html, which needs neither of them."""
    folder = Path(folder)
    write_json(folder / "comparison.json", dataclasses.asdict(comparison))
    picture = plot(comparison)
    for name, content in (
        ("comparison.png", picture),
        ("report.html", page(comparison, picture).encode()),
    ):
        temporary = folder / f"{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(folder / name)


def text(comparison: Comparison) -> str:
    """The table and what it says, for a terminal."""
    columns = range(1, len(_heading(comparison)))
    lines = aligned([_heading(comparison), *_rows(comparison)], right=tuple(columns))
    return "\n".join([*lines, "", *notes(comparison), "", *sentences(comparison)])


def notes(comparison: Comparison) -> Iterator[str]:
    """How to read the table."""
    yield (
        f"{comparison.metric} in per cent, the mean of {comparison.seeds} seeds; differences in "
        f"points, between runs of one seed. [Intervals] are of {paired.CONFIDENCE:.0%}, each by "
        f"itself; p is corrected for the number of networks."
    )
    yield f"MMACs and MB are of one image, images/s of training on {comparison.device}."


def sentences(comparison: Comparison) -> Iterator[str]:
    """What can be said of each network, and what cannot."""
    for network in comparison.networks:
        if network.above_base is not None:
            yield _sentence(network.name, network.above_base, comparison.base)
    for network in comparison.networks:
        if network.above_plain is not None and comparison.plain is not None:
            yield _sentence(network.name, network.above_plain, comparison.plain)


def _sentence(name: str, difference: paired.Difference, reference: str) -> str:
    seeds = len(difference.values)
    found = f"{_points(difference.mean)} points"
    if difference.corrected_p is None:
        return (
            f"{name} against {reference}: {found} in {seeds} seeds, which are too few to say "
            f"anything: take {paired.FEWEST_SEEDS} or more."
        )
    if difference.interval is None or difference.detectable is None:
        return (
            f"{name} against {reference}: {found} at every seed. Without any spread there is no "
            f"test, so nothing is claimed."
        )
    low, high = map(_points, difference.interval)
    measured = f"{found}, [{low}, {high}], p {_p(difference.corrected_p)}"
    power = (
        f"{seeds} seeds with this spread show a true difference of "
        f"{100 * difference.detectable:.2f} points {paired.POWER:.0%} of the time."
    )
    if difference.verdict == paired.NOT_SHOWN:
        return f"{name} against {reference}: no difference shown ({measured}). {power}"
    return f"{name} is {difference.verdict} than {reference} ({measured}). {power}"


def page(comparison: Comparison, picture: bytes) -> str:
    """The report as one HTML file, with the plot `picture`, a PNG, inside."""
    image = base64.b64encode(picture).decode()
    stated = " ".join(f"{field}={value}" for field, value in comparison.fields.items())
    seeds = [f"seed {seed}" for seed in range(comparison.seeds)]
    runs = [(network.name, *map(_per_cent, network.results)) for network in comparison.networks]
    names = ", ".join(network.name for network in comparison.networks)
    paragraphs = "\n".join(f"<p>{escape(line)}</p>" for line in notes(comparison))
    said = "\n".join(f"<li>{escape(line)}</li>" for line in sentences(comparison))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(comparison.config)}: {escape(names)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1>{escape(comparison.config)}</h1>
<p>{escape(names)} {escape(stated)}</p>
{_table(_heading(comparison), _rows(comparison))}
{paragraphs}
<ul>
{said}
</ul>
<div>
<img alt="{escape(comparison.metric)}, and against cost" src="data:image/png;base64,{image}">
</div>
<h2>Every run</h2>
{_table(("", *seeds), runs)}
</body>
</html>
"""


def plot(comparison: Comparison) -> bytes:
    """The metric of each network, with its seeds and the interval of their mean, as a PNG.

    Beside it the means against each cost.
    """
    figure = matplotlib.figure.Figure(figsize=(15, 4.5), layout="constrained")
    own, *panels = figure.subplots(1, 1 + len(_COSTS), sharey=True)
    styles = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    for place, (network, style) in enumerate(zip(comparison.networks, styles, strict=False)):
        _draw_network(own, panels, place, network, *style)
    names = [network.name for network in comparison.networks]
    own.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    own.set(ylabel=f"{comparison.metric}, per cent")
    own.grid(alpha=0.3)
    for axes, name in zip(panels, _COSTS, strict=True):
        axes.set(xlabel=name)
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
    figure.legend(*own.get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(
        f"{comparison.config}: {comparison.seeds} seeds (dots), "
        f"their means and intervals of {paired.CONFIDENCE:.0%}"
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _draw_network(
    own: Any, panels: Iterable[Any], place: int, network: Network, colour: str, marker: str
) -> None:
    style = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
    mean = 100 * network.mean
    low, high = network.interval or (network.mean, network.mean)
    reach = [[mean - 100 * low], [100 * high - mean]]
    own.errorbar(place, mean, reach, capsize=4, label=network.name, **style)
    for result in network.results:
        own.plot(place + 0.25, 100 * result, ".", color=colour)
    for axes, cost in zip(panels, _COSTS.values(), strict=True):
        if (spent := cost(network)) is not None:
            # Not filled: those of nearly the same cost are drawn over each other.
            axes.plot(spent, mean, fillstyle="none", markeredgewidth=2, **style)


def _heading(comparison: Comparison) -> tuple[str, ...]:
    against = [f"against {comparison.base}", "p"]
    if comparison.plain is not None:
        against += [f"against {comparison.plain}", "p"]
    return ("", comparison.metric, *against, "parameters", "MMACs", "MB", "images/s")


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for network in comparison.networks:
        against = [*_against(network.above_base)]
        if comparison.plain is not None:
            against += _against(network.above_plain)
        speed = network.images_per_second
        yield (
            network.name,
            f"{_per_cent(network.mean)} {_bracketed(network.interval, _per_cent)}".rstrip(),
            *against,
            f"{network.spent.parameters:,}",
            mmacs(network.spent.macs),
            f"{network.spent.bytes / 1e6:.3f}",
            "" if speed is None else f"{speed:,.0f}",
        )


def _against(difference: paired.Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    mean, interval = _points(difference.mean), _bracketed(difference.interval, _points)
    p = difference.corrected_p
    return f"{mean} {interval}".rstrip(), "" if p is None else _p(p)


def _bracketed(interval: paired.Interval | None, written: Callable[[float], str]) -> str:
    return "" if interval is None else f"[{', '.join(map(written, interval))}]"


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    lines = [row(heading, "th"), *(row(cells, "td") for cells in rows)]
    return "\n".join(["<div><table>", *lines, "</table></div>"])


def _per_cent(value: float) -> str:
    return f"{100 * value:.2f}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
