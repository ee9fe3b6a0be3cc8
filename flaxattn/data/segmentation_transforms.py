"""Images with masks, on a canvas of one size.

image: float32 (H, W, C), normalised; zeros, which are the mean colour, where there is no image
label: int32 (H, W), the index of each pixel's class, and 255 where it does not count
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxattn.data.records import IGNORED, Example, RandomTransform, Record, Transform
from flaxattn.errors import InputError, require_least
from flaxattn.images.canvas import require_canvas
from flaxattn.images.decoding import decode
from flaxattn.images.geometry import random_window, resize, with_shorter_side
from flaxattn.images.preprocessing import normalise, require_normalisation


def train_transform(config: Mapping[str, Any]) -> RandomTransform:
    """Resized at random, mirrored or not, and a random window of it: as in torchvision's recipe.

    The shorter side becomes `eval_resize` (if that is 0: its own length) times a number drawn from
    `augment.scale`. The window has `image_size` pixels on either side; where the image is smaller,
    it is padded at the bottom and on the right.

    Args:
        config: `channels`, `mean`, `std`, `image_size`, `eval_resize`, and under `augment`: `scale`
            ((0.5, 2.0) in the recipe) and `flip`.

    Raises InputError for values that do not go together; when called, for an image that cannot be
    read and a mask of another size.
    """
    channels, mean, std = _normalisation(config)
    size, base, augment = config["image_size"], config["eval_resize"], config["augment"]
    low, high = augment["scale"]
    flip = augment["flip"]
    require_least("image_size", size, 1)
    require_least("eval_resize", base, 0)
    if not 0 < low <= high:
        raise InputError(f"augment.scale={(low, high)} must be two numbers above 0, rising.")

    def transform(record: Record, rng: np.random.Generator) -> Example:
        image, mask = _decoded(record, channels)
        shorter = (base or min(mask.shape)) * rng.uniform(low, high)
        image, mask = _resized(image, mask, max(1, round(shorter)))
        if flip and rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        window = random_window(image, rng, *(min(side, size) for side in mask.shape))
        return _padded(normalise(image[window], mean=mean, std=std), mask[window], (size, size))

    return transform


def eval_transform(config: Mapping[str, Any]) -> Transform:
    """The shorter side resized to `eval_resize`, or nothing resized if that is 0.

    The mask goes with the image: without resizing, what is measured counts the data set's own
    pixels.

    Args:
        config: `channels`, `mean`, `std`, `eval_resize`, and `canvas`, height and width of an
            example, at least those of the largest image: (512, 512) holds all of VOC unresized.

    Raises InputError as `train_transform`; when called, also for an image larger than the canvas.
    """
    channels, mean, std = _normalisation(config)
    base, canvas = config["eval_resize"], tuple(config["canvas"])
    require_least("eval_resize", base, 0)
    require_canvas(canvas)

    def transform(record: Record) -> Example:
        image, mask = _decoded(record, channels)
        if base:
            image, mask = _resized(image, mask, base)
        if mask.shape[0] > canvas[0] or mask.shape[1] > canvas[1]:
            raise InputError(
                f"{record['name']} has {mask.shape[0]}x{mask.shape[1]} pixels (height by width), "
                f"more than canvas={canvas}: use a larger data.canvas or a smaller "
                f"data.eval_resize."
            )
        return _padded(normalise(image, mean=mean, std=std), mask, canvas)

    return transform


def _normalisation(
    config: Mapping[str, Any],
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    channels, mean, std = config["channels"], tuple(config["mean"]), tuple(config["std"])
    require_normalisation(channels, mean, std)
    return channels, mean, std


def _decoded(record: Record, channels: int) -> tuple[np.ndarray, np.ndarray]:
    image = decode(record["image"], channels=channels, name=record["name"])
    mask = record["mask"]
    if image.shape[:2] != mask.shape:
        height, width = image.shape[:2]
        raise InputError(
            f"{record['name']} has {height}x{width} pixels (height by width) and its mask "
            f"{mask.shape[0]}x{mask.shape[1]}: give them one size."
        )
    return image, mask


def _resized(image: np.ndarray, mask: np.ndarray, shorter: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = with_shorter_side(image.shape[0], image.shape[1], shorter)
    resized = resize(mask[..., None], height, width, interpolation="nearest")
    return resize(image, height, width), resized[..., 0]


def _padded(image: np.ndarray, mask: np.ndarray, canvas: tuple[int, int]) -> Example:
    rows, columns = ((0, have - own) for have, own in zip(canvas, mask.shape, strict=True))
    return {
        "image": np.pad(image, (rows, columns, (0, 0))),
        "label": np.pad(mask.astype(np.int32), (rows, columns), constant_values=IGNORED),
    }
