"""Resizing, cropping and flipping. Pillow resizes with antialiasing, as in torchvision and timm."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from flaxattn.errors import InputError, require_least, require_range, unknown
from flaxattn.images.decoding import pillow, to_pillow
from flaxattn.layers.fields import checked

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MOST_PIXELS = 2**28  # of one image: a colour one takes 768 MiB


@checked
def resize(
    image: np.ndarray, height: int, width: int, *, interpolation: str = "bilinear"
) -> np.ndarray:
    """The image as (height, width, C); `interpolation` is Pillow's name of it.

    Raises InputError for another name, and for a size that no image can have.
    """
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
    _require_size(image, height, width)
    if image.shape[:2] == (height, width):
        return image
    method = pillow().Resampling[interpolation.upper()]
    resized = to_pillow(image).resize((width, height), method)
    return np.asarray(resized).reshape(height, width, image.shape[-1])


def interpolate(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A float image (H, W, C) as (height, width, C), bilinear and without antialiasing.

    The function is torch's `interpolate(mode="bilinear", align_corners=False)`, for what must be as
    torchvision's detectors have it.
    """
    rows = _interpolate_rows(image, height)
    return _interpolate_rows(rows.swapaxes(0, 1), width).swapaxes(0, 1)


def _interpolate_rows(image: np.ndarray, count: int) -> np.ndarray:
    at = np.maximum((np.arange(count) + 0.5) * (len(image) / count) - 0.5, 0)
    before = at.astype(np.intp)
    after = np.minimum(before + 1, len(image) - 1)
    first, rows = image.take(before, axis=0), image.take(after, axis=0)
    rows -= first
    rows *= (at - before)[:, None, None].astype(image.dtype)
    rows += first
    return rows


def with_shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width, proportions kept, of which the shorter is `size`.

    The fraction of the longer one is cut off, as in torchvision.
    """
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


@checked
def resize_shorter_side(image: np.ndarray, *, size: int) -> np.ndarray:
    """The image with its shorter side resized to `size` and its proportions kept."""
    height, width = sides(image)
    return resize(image, *with_shorter_side(height, width, size))


@checked
def squash(image: np.ndarray, *, size: int) -> np.ndarray:
    """The image with both sides resized to `size`, whatever its proportions."""
    return resize(image, size, size)


@checked
def center_crop(
    image: np.ndarray, height: int, width: int, *, fill: int | Sequence[int] = 0
) -> np.ndarray:
    """The central (height, width, C) of the image, with `fill` around it where it is smaller."""
    _require_size(image, height, width)
    rows, columns = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if rows or columns:
        image = _bordered(image, rows, columns, fill)
    top = round((image.shape[0] - height) / 2)
    left = round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


@checked
def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of the image, resized to (size, size, C).

    Its area is drawn from `scale` times the image's, its width over height log-uniformly from
    `ratio`. Where ten draws do not fit, the largest central part within `ratio` is taken.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; the procedure is torchvision's.

    Raises InputError for a scale or ratio that is not two numbers above 0 in order.
    """
    require_span("scale", scale)
    require_span("ratio", ratio)
    height, width = sides(image)
    for w, h in random_sides(height * width, rng, scale, ratio):
        if 0 < w <= width and 0 < h <= height:
            return resize(image[random_window(image, rng, h, w)], size, size)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = max(1, min(width, round(height * aspect)))
    h = max(1, min(height, round(width / aspect)))
    return resize(center_crop(image, h, w), size, size)


@checked
def padded_crop(
    image: np.ndarray, rng: np.random.Generator, *, size: int, padding: int
) -> np.ndarray:
    """A random window (size, size, C) of the image padded with `padding` zeros on every side.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: 4 pixels
    for the 32x32 images of CIFAR-10.

    Raises InputError if the padded image is smaller than the window, and for a negative padding.
    """
    require_least("padding", padding, 0)
    height, width = sides(image)
    if min(height, width) + 2 * padding < size:
        raise InputError(
            f"no window of {size}x{size} fits into an image of {height}x{width} padded by "
            f"{padding}: resize it to at least {size} or pad by at least "
            f"{-(-(size - min(height, width)) // 2)}."
        )
    padded = _bordered(image, 2 * padding, 2 * padding)
    return padded[random_window(padded, rng, size, size)]


@checked
def horizontal_flip(
    image: np.ndarray, rng: np.random.Generator, *, probability: float = 0.5
) -> np.ndarray:
    """The image or, with `probability`, its mirror image, left to right."""
    require_image(image)
    require_range("probability", probability, 0, 1)
    return image[:, ::-1] if rng.random() < probability else image


def sides(image: np.ndarray) -> tuple[int, int]:
    """Height and width. Raises InputError unless the image is (H, W, C)."""
    require_image(image)
    return image.shape[0], image.shape[1]


def require_image(image: np.ndarray) -> None:
    """InputError unless the image is (H, W, C) with a pixel or more."""
    if image.ndim != 3 or not image.size:
        raise InputError(f"an image of shape {image.shape} must be (H, W, C), with no axis empty.")


def require_span(field: str, span: Sequence[float]) -> None:
    """InputError unless `span` is two numbers above 0, the smaller one first."""
    if len(span) != 2 or not 0 < span[0] <= span[1]:
        raise InputError(f"{field}={span} must be two numbers above 0, the smaller one first.")


def _require_size(image: np.ndarray, height: int, width: int) -> None:
    """InputError for what is not (H, W, C), and for a size that it cannot be given."""
    require_image(image)
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise InputError(
            f"an image of {image.shape[0]}x{image.shape[1]} would become {height}x{width}: use a "
            f"size of 1x1 or more and {MOST_PIXELS} pixels at most, or leave this image out."
        )


def random_sides(
    area: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Iterator[tuple[int, int]]:
    """Ten draws of a rectangle's two sides, which need not fit.

    Its area is drawn from `scale` times `area`, its first side over its second log-uniformly from
    `ratio`.
    """
    for _ in range(10):
        part = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        yield round(math.sqrt(part * aspect)), round(math.sqrt(part / aspect))


def random_window(
    image: np.ndarray, rng: np.random.Generator, height: int, width: int
) -> tuple[slice, slice]:
    """Where a random window of this height and width is in the image."""
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _bordered(
    image: np.ndarray, rows: int, columns: int, fill: int | Sequence[int] = 0
) -> np.ndarray:
    """The image with so many more rows and columns of `fill`, half of them before it."""
    height, width, channels = image.shape
    _require_size(image, height + rows, width + columns)
    top, left = rows // 2, columns // 2
    canvas = np.empty((height + rows, width + columns, channels), image.dtype)
    canvas[:] = fill
    canvas[top : top + height, left : left + width] = image
    return canvas
