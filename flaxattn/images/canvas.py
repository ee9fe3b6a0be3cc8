"""Whole images on canvases, so that images of different sizes go through one program.

An image stands in the upper left corner of its canvas, with zeros below and on the right.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxattn.errors import InputError, require_least

Size = tuple[int, int]  # height and width


class Placed(NamedTuple):
    """An image on its canvas.

    Fields:
        image: float32 (H, W, C), normalised, and zeros where the image is not.
        size: int32 (2,), height and width of the image on the canvas.
        original_size: int32 (2,), height and width of the file's image.
    """

    image: np.ndarray
    size: np.ndarray
    original_size: np.ndarray


def on_canvas(image: np.ndarray, canvas: Size) -> np.ndarray:
    """The image (h, w, C) on its canvas (H, W, C), which holds it."""
    placed = np.zeros((*canvas, image.shape[-1]), image.dtype)
    placed[: image.shape[0], : image.shape[1]] = image
    return placed


def placed(image: np.ndarray, canvas: Size, original_size: Size) -> Placed:
    """The image with its sizes on its canvas and before."""
    sizes = (np.array(size, np.int32) for size in (image.shape[:2], original_size))
    return Placed(on_canvas(image, canvas), *sizes)


def rounded_up(size: Size, multiple: int) -> Size:
    """The least canvas that holds `size` and whose sides are multiples of `multiple`."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def detector_size(
    height: int, width: int, *, min_size: float, max_size: float, canvas: Size | None = None
) -> Size:
    """The size to which detectors resize an image of this height and width.

    It is resized by min(min_size / its shorter side, max_size / its longer one), as in
    torchvision's GeneralizedRCNNTransform, and by less where it would not fit on the canvas: a
    square one of max_size holds everything.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    if canvas is not None:
        scale = min(scale, canvas[0] / height, canvas[1] / width)
    return max(1, int(height * scale)), max(1, int(width * scale))


def require_sizes(min_size: float | Sequence[float], max_size: float) -> None:
    """InputError unless a shorter side, or each of several, is above 0 and at most `max_size`."""
    sizes = min_size if isinstance(min_size, Sequence) else (min_size,)
    if not (sizes and 0 < min(sizes) <= max(sizes) <= max_size):
        raise InputError(
            f"min_size={min_size} and max_size={max_size}: use sizes above 0, and a max_size of at "
            f"least min_size."
        )


def require_canvas(canvas: Sequence[int], *, of: int = 1) -> None:
    """InputError unless it is a height and a width above 0, multiples of `of`."""
    if len(canvas) != 2 or min(canvas) < 1 or any(side % of for side in canvas):
        sides = f"multiples of {of} above 0" if of > 1 else "above 0"
        raise InputError(f"canvas={canvas} must be a height and a width, both {sides}.")


def require_multiple(multiple: int, *, of: int = 1) -> None:
    """InputError unless `multiple` is one of `of`, above 0."""
    require_least("multiple", multiple, of)
    if multiple % of:
        raise InputError(f"multiple={multiple} must be a multiple of {of}, such as {8 * of}.")


def stated(config: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """mean, std, canvas and multiple in a config; where it has none, the default's.

    Raises TypeError, ValueError, OverflowError or LookupError for values that are none of these.
    """
    canvas = config.get("canvas")
    return {
        "mean": tuple(map(float, config.get("mean") or default.mean)),
        "std": tuple(map(float, config.get("std") or default.std)),
        "canvas": None if canvas is None else (int(canvas[0]), int(canvas[1])),
        "multiple": int(config.get("multiple") or default.multiple),
    }
