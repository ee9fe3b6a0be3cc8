"""Normalisation, and the preprocessing that belongs to a checkpoint: with another it is worse."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxattn.errors import InputError, unknown
from flaxattn.images.decoding import Encoded, decode
from flaxattn.images.geometry import (
    INTERPOLATIONS,
    center_crop,
    require_image,
    resize,
    with_shorter_side,
)
from flaxattn.layers.fields import checked, require_type, require_types

_CROP_MODES = ("center", "squash", "border")


@checked
def normalise(image: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(image / 255 - mean) / std as float32; mean and std per channel, in units of 0 to 1.

    Training and its evaluation round like this. timm, and so `Preprocessing`, divides by 255 first,
    and the last bits differ.

    Raises InputError for an image that is not (H, W, C), and what `require_normalisation` refuses.
    """
    require_image(image)
    require_normalisation(image.shape[-1], mean, std)
    scale = np.float32(255) * np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return image.astype(np.float32) / scale - shift


def pixels_of(image: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The uint8 pixels of a normalised image, for people to look at."""
    scaled = image * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def require_normalisation(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """InputError unless channels are 1 or 3, with a mean and a std above 0 for each."""
    if channels not in (1, 3):
        raise InputError(f"channels={channels} must be 1 (grey) or 3 (RGB).")
    numbers = all(map(math.isfinite, (*mean, *std)))
    if len(mean) != channels or len(std) != channels or min(std) <= 0 or not numbers:
        raise InputError(
            f"mean={mean} and std={std} do not fit {channels} channels: give each one number per "
            f"channel, those of std above 0."
        )


class Preprocessing(NamedTuple):
    """What an image goes through in evaluation. Called with an image, it does it.

        preprocessing = Preprocessing.of(fetch("timm/resnet50.a1_in1k").config)
        x = preprocessing("cat.jpg")    # float32 (H, W, C)

    The image is resized to input_size / crop_pct, and its centre of input_size is cut out, scaled
    to 0 to 1 and normalised, bit for bit as by timm's transform for evaluation. The defaults are
    those of torchvision's first ImageNet weights: shorter side to 256, centre of 224, bilinear.

    Fields:
        input_size: (H, W, C) of the network's input; C is 1 (grey) or 3 (RGB).
        mean, std: of each channel, in units of 0 to 1.
        crop_pct: the side of the centre that is kept, as a part of the resized image's.
        crop_mode: "center" resizes the shorter side, "squash" both, without regard to proportions,
            "border" the longer one, and fills up with the mean colour.
        interpolation: Pillow's name of it; always with antialiasing.
    """

    input_size: tuple[int, int, int] = (224, 224, 3)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing in a `Checkpoint.config`; the defaults if the config is empty.

        timm's config.json serves as well, with most of it under "pretrained_cfg". What a config
        leaves out is timm's default: bicubic, and the rest as above.

        Raises InputError for values that cannot be read and for those that `checked` refuses.
        """
        default, config = cls(), flat_config(config)
        if not config:
            return default
        try:
            channels, height, width = config.get("input_size") or (3, 224, 224)
            found = cls(
                (int(height), int(width), int(channels)),
                tuple(map(float, config.get("mean") or default.mean)),
                tuple(map(float, config.get("std") or default.std)),
                float(config.get("crop_pct") or default.crop_pct),
                str(config.get("crop_mode") or default.crop_mode),
                str(config.get("interpolation") or "bicubic"),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the config's preprocessing cannot be read ({error}): input_size must be the "
                f"integers (C, H, W), mean and std a number per channel, and crop_pct a number."
            ) from error
        return found.checked()

    def checked(self) -> "Preprocessing":
        """Itself. Raises InputError for names that are unknown and numbers that do not fit."""
        require_types(self)
        if self.crop_mode not in _CROP_MODES:
            raise unknown("crop_mode", self.crop_mode, _CROP_MODES)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        height, width, channels = self.input_size
        if channels not in (1, 3) or min(height, width) < 1:
            raise InputError(
                f"input_size={self.input_size} is not (H, W, C) of an image: use C=1 (grey) or 3 "
                f"(RGB), and H and W above 0."
            )
        require_normalisation(channels, self.mean, self.std)
        if not 0 < self.crop_pct < math.inf:
            raise InputError(
                f"crop_pct={self.crop_pct} must be above 0, and is at most 1 as a rule."
            )
        return self

    def __call__(self, image: Encoded) -> np.ndarray:
        """float32 (H, W, C) = `input_size` of an image file, its bytes, or a Pillow image.

        Raises InputError for an image that cannot be read and for fields that `checked` refuses.
        """
        height, width, channels = self.checked().input_size
        pixels = decode(image, channels=channels)
        size = self._size_before_crop(*pixels.shape[:2])
        pixels = resize(pixels, *size, interpolation=self.interpolation)
        bordered = self.crop_mode == "border"
        fill = [round(255 * value) if bordered else 0 for value in self.mean]
        pixels = center_crop(pixels, height, width, fill=fill)
        scaled = pixels.astype(np.float32) / np.float32(255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _size_before_crop(self, height: int, width: int) -> tuple[int, int]:
        around = [math.floor(side / self.crop_pct) for side in self.input_size[:2]]
        if self.crop_mode == "squash":
            return around[0], around[1]
        if self.crop_mode == "center" and around[0] == around[1]:
            # timm leaves this case to torchvision, which rounds otherwise than the last line.
            return with_shorter_side(height, width, around[0])
        ratios = height / around[0], width / around[1]
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def to_config(self) -> dict[str, Any]:
        """The fields as timm's config has them, for `write` and for `of`."""
        height, width, channels = self.input_size
        return {**self._asdict(), "input_size": (channels, height, width)}


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what it has under "pretrained_cfg" beside the rest, which wins, as in timm.

    Raises InputError where either is not a mapping.
    """
    require_type("config", config, Mapping)
    inner = config.get("pretrained_cfg", {})
    require_type("pretrained_cfg", inner, Mapping)
    return {**inner, **{key: value for key, value in config.items() if key != "pretrained_cfg"}}


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes' names in a `Checkpoint.config`, or None.

    A description, where the config has one, stands for the name.

    Raises InputError unless the names are a list of names and the descriptions a mapping.
    """
    config = flat_config(config)
    names = config.get("label_names")
    if names is None:
        return None
    described = config.get("label_descriptions") or {}
    are_names = isinstance(names, list | tuple) and all(isinstance(n, str | int) for n in names)
    if not are_names or not isinstance(described, Mapping):
        raise InputError(
            f"the config's label_names={reprlib.repr(names)} must be a list of names and its "
            f"label_descriptions={reprlib.repr(described)} a mapping from these names."
        )
    return tuple(str(described.get(name, name)) for name in names) or None
