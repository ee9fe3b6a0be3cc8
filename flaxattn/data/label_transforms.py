"""Images with labels: {"image": float32 (size, size, C), "label": int32 () or (K,)}."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flaxattn.data.records import Example, RandomTransform, Record, Transform
from flaxattn.errors import InputError, require_least, require_range, unknown
from flaxattn.images.augmentation import rand_augment, random_erasing
from flaxattn.images.decoding import decode
from flaxattn.images.geometry import (
    center_crop,
    horizontal_flip,
    padded_crop,
    random_resized_crop,
    require_span,
    resize_shorter_side,
    squash,
)
from flaxattn.images.preprocessing import normalise, require_normalisation
from flaxattn.layers.fields import require_fields

_FIELDS = {
    "image_size": int,
    "channels": int,
    "mean": Sequence[float],
    "std": Sequence[float],
    "eval_resize": int,
    "crop_mode": str,
}
_AUGMENT = {
    "crop": str,
    "scale": Sequence[float],
    "ratio": Sequence[float],
    "padding": int,
    "flip": bool,
    "randaugment_ops": int,
    "randaugment_magnitude": float,
    "erasing": float,
}

_RESIZED = {"center": resize_shorter_side, "squash": squash}


def train_transform(config: Mapping[str, Any]) -> RandomTransform:
    """The augmentation that a config asks for, from a record and a generator to an example.

    Args:
        config: `image_size`, `channels`, `mean`, `std`, `eval_resize`, `crop_mode`, and under
            `augment`: `crop` ("resized": `random_resized_crop` with `scale` and `ratio`; "padded":
            resized to image_size as crop_mode says, then `padded_crop` with `padding`; "center":
            as in evaluation), `flip`, `randaugment_ops` (0: none) and `randaugment_magnitude`, and
            `erasing`, the probability of `random_erasing` with the mean colour. Applied in this
            order.

    Raises InputError for an unknown crop, for values of another kind or out of range, and for what
    `eval_transform` refuses.
    """
    channels, size, mean, std = _checked(config)
    require_fields(config, {"augment": Mapping})
    resized, centred = _RESIZED[config["crop_mode"]], _centred(config)
    augment = config["augment"]
    require_fields(augment, _AUGMENT, "augment.")
    scale, ratio, padding = tuple(augment["scale"]), tuple(augment["ratio"]), augment["padding"]
    flip, erasing = augment["flip"], augment["erasing"]
    num_ops, magnitude = augment["randaugment_ops"], augment["randaugment_magnitude"]
    require_span("scale", scale)
    require_span("ratio", ratio)
    require_least("padding", padding, 0)
    require_least("randaugment_ops", num_ops, 0)
    require_range("randaugment_magnitude", magnitude, 0, 30)
    require_range("erasing", erasing, 0, 1)

    crops: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
        "resized": partial(random_resized_crop, size=size, scale=scale, ratio=ratio),
        "padded": lambda image, rng: padded_crop(
            resized(image, size=size), rng, size=size, padding=padding
        ),
        "center": lambda image, _: centred(image),
    }
    if augment["crop"] not in crops:
        raise unknown("crop", augment["crop"], crops)
    crop = crops[augment["crop"]]

    def transform(record: Record, rng: np.random.Generator) -> Example:
        image = crop(decode(record["image"], channels=channels, name=record["name"]), rng)
        if flip:
            image = horizontal_flip(image, rng)
        if num_ops:
            image = rand_augment(image, rng, num_ops=num_ops, magnitude=magnitude)
        image = normalise(image, mean=mean, std=std)
        if erasing:
            image = random_erasing(image, rng, probability=erasing)
        return {"image": image, "label": np.asarray(record["label"], np.int32)}

    return transform


def eval_transform(config: Mapping[str, Any]) -> Transform:
    """Resized to `eval_resize`, central `image_size`, normalised: a record to an example.

    Args:
        config: `image_size`, `channels` (1 or 3), `mean` and `std` (one number per channel, in
            units of 0 to 1), `eval_resize` (at least image_size; equal means no margin) and
            `crop_mode` ("center": the shorter side becomes eval_resize; "squash": both sides).

    Raises InputError for values that do not go together.
    """
    channels, _, mean, std = _checked(config)
    centred = _centred(config)

    def transform(record: Record) -> Example:
        image = decode(record["image"], channels=channels, name=record["name"])
        return {
            "image": normalise(centred(image), mean=mean, std=std),
            "label": np.asarray(record["label"], np.int32),
        }

    return transform


def _centred(config: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """What evaluation does to pixels."""
    size, around = config["image_size"], config["eval_resize"]
    resized = _RESIZED[config["crop_mode"]]
    return lambda image: center_crop(resized(image, size=around), size, size)


def _checked(
    config: Mapping[str, Any],
) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    require_fields(config, _FIELDS)
    channels, size, resize = config["channels"], config["image_size"], config["eval_resize"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    require_normalisation(channels, mean, std)
    if not 0 < size <= resize:
        raise InputError(
            f"image_size={size} cannot be cut out of a shorter side of eval_resize={resize}: use "
            f"an eval_resize of at least image_size, and both above 0."
        )
    if config["crop_mode"] not in _RESIZED:
        raise unknown("crop_mode", config["crop_mode"], _RESIZED)
    return channels, size, mean, std
