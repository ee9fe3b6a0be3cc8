"""Images uint8 (H, W, 3) with what was found in them, for people to look at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxattn.images.decoding import pillow, to_pillow
from flaxattn.images.geometry import resize

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

PICTURE = 256  # pixels of a picture's longer side
_GAP = 4  # pixels between two pictures, and around a caption


def _voc_colours() -> np.ndarray:
    """Of VOC's masks: the bits of a number, three at a time, are the colour's highest."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    colours = np.zeros((256, 3, 8), np.uint8)
    for place in range(8):
        colours[:, place % 3, place // 3] = bits[:, place]
    return np.packbits(colours, axis=2)[..., 0]


COLOURS = _voc_colours()  # uint8 (256, 3): black, then one of each class


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """The image, grey or RGB, as RGB whose longer side is `side`."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return np.broadcast_to(resize(image, height, width), (height, width, 3)).copy()


def with_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], captions: Sequence[str]
) -> np.ndarray:
    """The image with boxes (n, 4), left, top, right, bottom in pixels, and a caption on each.

    A box has the colour of its label, which counts from 0.
    """
    drawn = to_pillow(image)
    draw = _draw_on(drawn)
    for box, label, caption in zip(boxes.tolist(), labels, captions, strict=True):
        left, top, right, bottom = box
        colour = tuple(COLOURS[(label + 1) % 256].tolist())
        # The last pixel inside; a box that is thinner than one is drawn as one.
        corner = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle((left, top, *corner), outline=colour, width=2)
        _write(draw, (left, top), caption, on=colour)
    return np.asarray(drawn)


def with_classes(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The image with half of each pixel's colour that of its class (H, W).

    Class 0, the background, and 255, which is no class, leave their pixels alone.
    """
    coloured = image // 2 + COLOURS[classes.astype(np.uint8)] // 2
    plain = (classes == 0) | (classes == 255)
    return np.where(plain[..., None], image, coloured)


def with_names(image: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The image with the name of each class (H, W) on that of its pixels nearest to their middle.

    The background and 255 have none.
    """
    drawn = to_pillow(image)
    draw = _draw_on(drawn)
    for label in np.setdiff1d(classes, (0, 255)).tolist():
        pixels = np.argwhere(classes == label)
        distances = np.abs(pixels - pixels.mean(axis=0)).sum(axis=1)
        top, left = pixels[np.argmin(distances)].tolist()
        _write(draw, (left, top), names[label], on=tuple(COLOURS[label].tolist()))
    return np.asarray(drawn)


def with_caption(image: np.ndarray, caption: str) -> np.ndarray:
    """The image with a line of text in its upper left corner."""
    drawn = to_pillow(image)
    _write(_draw_on(drawn), (0, 0), caption, on=(0, 0, 0))
    return np.asarray(drawn)


def table(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """The pictures on white, in rows and columns."""
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    widths = [max(p.shape[1] for p in column) for column in zip(*rows, strict=True)]
    tops, lefts = (np.cumsum([_GAP, *(side + _GAP for side in s)]) for s in (heights, widths))
    sheet = np.full((tops[-1], lefts[-1], 3), 255, np.uint8)
    for top, row in zip(tops, rows, strict=False):
        for left, picture in zip(lefts, row, strict=False):
            height, width = picture.shape[:2]
            sheet[top : top + height, left : left + width] = picture
    return sheet


def _draw_on(image: "Image.Image") -> "ImageDraw.ImageDraw":
    pillow()
    from PIL import ImageDraw

    return ImageDraw.Draw(image)


def _write(
    draw: "ImageDraw.ImageDraw",
    corner: tuple[float, float],
    text: str,
    *,
    on: tuple[int, ...],
) -> None:
    """Text inside the picture, near its corner, in black or white on a ground of `on`."""
    _, _, width, height = draw.textbbox((0, 0), text)
    left = max(0, min(corner[0], draw.im.size[0] - width - _GAP))
    top = max(0, min(corner[1], draw.im.size[1] - height - _GAP))
    draw.rectangle((left, top, left + width + _GAP, top + height + _GAP // 2), fill=on)
    light = sum(on) > 3 * 128
    draw.text((left + _GAP // 2, top), text, fill=(0, 0, 0) if light else (255, 255, 255))
