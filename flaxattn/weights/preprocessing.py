"""How images are prepared for a checkpoint: a part of its weights, for with another it is worse."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flaxattn.errors import InputError, unknown

if TYPE_CHECKING:
    from PIL import Image

_CROP_MODES = ("center", "squash", "border")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Preprocessing(NamedTuple):
    """What an image goes through in evaluation; called with a Pillow image, it does it.

        preprocessing = Preprocessing.of(fetch("timm/resnet50.a1_in1k").config)
        x = preprocessing(Image.open("cat.jpg"))    # float32 (H, W, C)

    The image is resized to input_size / crop_pct, its centre of input_size cut out, scaled to 0 to
    1 and normalised, exactly as by timm's transform for evaluation. The defaults are those of
    torchvision's first ImageNet weights: shorter side to 256, centre of 224, bilinear.

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
        """That of a `Checkpoint.config`; torchvision's if there is none.

        What a config leaves out is timm's default: bicubic, and the rest as above.

        Raises InputError for an unknown crop mode or interpolation, and sizes or numbers of
        channels that cannot be.
        """
        if not config:
            return cls()
        try:
            channels, height, width = config.get("input_size") or (3, 224, 224)
            return cls(
                (int(height), int(width), int(channels)),
                tuple(map(float, config.get("mean") or cls().mean)),
                tuple(map(float, config.get("std") or cls().std)),
                float(config.get("crop_pct") or cls().crop_pct),
                str(config.get("crop_mode") or cls().crop_mode),
                str(config.get("interpolation") or "bicubic"),
            ).checked()
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the config's preprocessing cannot be read: {error}.") from error

    def checked(self) -> "Preprocessing":
        """Itself, or InputError."""
        if self.crop_mode not in _CROP_MODES:
            raise unknown("crop_mode", self.crop_mode, _CROP_MODES)
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, _INTERPOLATIONS)
        height, width, channels = self.input_size
        if channels not in (1, 3) or min(height, width) < 1:
            raise InputError(
                f"input_size={self.input_size} is not (H, W, C) of an image: use C=1 (grey) or 3 "
                f"(RGB), and H and W above 0."
            )
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise InputError(
                f"mean={self.mean} and std={self.std} do not fit {channels} channels: give each "
                f"one number per channel, those of std above 0."
            )
        if not self.crop_pct > 0:
            raise InputError(
                f"crop_pct={self.crop_pct} keeps nothing: use a part above 0, as a rule up to 1."
            )
        return self

    def __call__(self, image: "Image.Image") -> np.ndarray:
        """float32 (H, W, C) = `input_size` of a Pillow image of any mode.

        Raises InputError for fields that cannot be.
        """
        from PIL import Image

        height, width, channels = self.checked().input_size
        image = image.convert("L" if channels == 1 else "RGB")
        size = _resized(image.size, (width, height), self.crop_pct, self.crop_mode)
        image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        bordered = self.crop_mode == "border"
        fill = [round(255 * value) if bordered else 0 for value in self.mean]
        pixels = _center(np.asarray(image).reshape(size[1], size[0], -1), height, width, fill)
        scaled = pixels.astype(np.float32) / np.float32(255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def to_config(self) -> dict[str, Any]:
        """The same under timm's names, for `write` and for `of`."""
        height, width, channels = self.input_size
        return {**self._asdict(), "input_size": (channels, height, width)}


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes' names in a `Checkpoint.config`, described where it does so; None if none.

    Raises InputError for names that are no list and descriptions that are no mapping.
    """
    names = config.get("label_names")
    if not names:
        return None
    described = config.get("label_descriptions") or {}
    if not isinstance(names, list | tuple) or not isinstance(described, Mapping):
        raise InputError(
            f"the config's label_names={names!r} with label_descriptions={described!r} are no "
            f"names: use a list, and a mapping from its names."
        )
    return tuple(str(described.get(name, name)) for name in names)


def _resized(
    size: Sequence[int], target: Sequence[int], crop_pct: float, crop_mode: str
) -> tuple[int, int]:
    """(W, H) of the image before its centre is cut out."""
    around = [math.floor(side / crop_pct) for side in target]
    if crop_mode == "squash":
        return around[0], around[1]
    ratios = [side / wanted for side, wanted in zip(size, around, strict=True)]
    if crop_mode == "center" and around[0] == around[1]:
        # torchvision cuts off the longer side's fraction, where timm's own resizing rounds it.
        short = min(size)
        longer = int(around[0] * max(size) / short)
        return (around[0], longer) if size[0] == short else (longer, around[0])
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    return round(size[0] / ratio), round(size[1] / ratio)


def _center(pixels: np.ndarray, height: int, width: int, fill: Sequence[int]) -> np.ndarray:
    """The central (height, width, C), with `fill` around what is smaller."""
    over = [max(0, side - have) for side, have in zip((height, width), pixels.shape, strict=False)]
    if any(over):
        canvas = np.empty(
            (pixels.shape[0] + over[0], pixels.shape[1] + over[1], pixels.shape[2]), np.uint8
        )
        canvas[:] = fill
        top, left = over[0] // 2, over[1] // 2
        canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        pixels = canvas
    top = round((pixels.shape[0] - height) / 2)
    left = round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]
