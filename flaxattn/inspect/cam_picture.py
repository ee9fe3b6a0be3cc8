"""Pictures of class activation maps, for people to look at and for papers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flaxattn.errors import InputError, unknown
from flaxattn.extras import require_extra
from flaxattn.inspect.explanation import Explanation

_COLOURS = "viridis"  # perceptually uniform, and read alike by people who see colours differently
_WIDTH, _DOTS = 1.5, 200  # inches of an image, and dots per inch
_SIZE = {"fontsize": 7}


def _matplotlib() -> ModuleType:
    require_extra("hub", "matplotlib", doing="drawing")
    import matplotlib.figure

    return matplotlib


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image uint8 (H, W, C), in grey under the colours of a map (H, W) from 0 to 1.

    uint8 (H, W, 3), half of each pixel's colour from either.
    """
    colours = _matplotlib().colormaps[_COLOURS](heat)[..., :3]
    grey = np.mean(image, axis=-1, keepdims=True) / 255
    return np.round(255 * (colours + grey) / 2).astype(np.uint8)


def write_picture(
    path: str | Path, images: np.ndarray, explanations: Sequence[Explanation]
) -> None:
    """Draws each image, its maps beside it, and below them the gates of its channels.

    Of each stage the last gate is drawn, a bar for each channel, the highest first.

    Args:
        path: a file of a type that matplotlib writes, such as .png or .pdf.
        images: uint8 (N, H, W, C).
        explanations: one for each image.

    Raises InputError for other types of files, and for a file that cannot be written.
    """
    figure = _figure(images, explanations)
    types = figure.canvas.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in types:
        raise unknown("type of picture", suffix, types)
    try:
        figure.savefig(path, dpi=_DOTS)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}.") from error


def _figure(images: np.ndarray, explanations: Sequence[Explanation]) -> Any:
    stages = [last_of_stages(one.gates) for one in explanations]
    shape = images.shape[1] / images.shape[2]
    columns = 1 + max(len(one.heats) for one in explanations)
    heights = _WIDTH * shape + 0.3, 1.0 if any(stages) else 0
    size = (max(3, columns * _WIDTH + 0.5), sum(heights) * len(images))
    figure = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    rows = figure.subfigures(len(images), 1, squeeze=False)[:, 0]
    for row, image, one, gates in zip(rows, images, explanations, stages, strict=True):
        above = row
        if gates:
            above, below = row.subfigures(2, 1, height_ratios=heights)
            _draw_gates(below, gates)
        _draw_maps(above, image, one.heats, columns)
    return figure


def _draw_maps(
    figure: Any, image: np.ndarray, heats: Mapping[str, np.ndarray], columns: int
) -> None:
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(np.broadcast_to(image, (*image.shape[:2], 3)))
    axes[0].set_title("image", **_SIZE)
    for axis, (title, heat) in zip(axes[1:], heats.items(), strict=False):
        axis.imshow(overlay(image, heat))
        axis.set_title(title, **_SIZE)
    colours = _matplotlib().cm.ScalarMappable(cmap=_COLOURS)
    bar = figure.colorbar(colours, ax=axes, ticks=(0, 1), fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=6)


def _draw_gates(figure: Any, gates: Mapping[str, np.ndarray]) -> None:
    axes = figure.subplots(1, len(gates), squeeze=False, sharey=True)[0]
    for axis, (name, gate) in zip(axes, gates.items(), strict=True):
        axis.stairs(np.sort(gate)[::-1], fill=True, color="0.35")
        axis.set_title(name, **_SIZE)
        axis.set_xlim(0, len(gate))
        axis.set_xticks((0, len(gate)))
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(min(0, *map(np.min, gates.values())), max(1, *map(np.max, gates.values())))
    axes[0].set_ylabel("gate", **_SIZE)
    figure.supxlabel("channels, the highest gate first", **_SIZE)


def last_of_stages(gates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of blocks that are called alike but for their number, such as layer3_0, the last one's."""

    def order(name: str) -> list[Any]:  # layer3_10 comes after layer3_2
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    stages: dict[str, str] = {}
    for name in sorted(gates, key=order):
        block = re.match(r"(.*?)_\d+(?:/|$)", name)
        stages[block[1] if block else name] = name
    return {name: gates[name] for name in stages.values()}
