"""From files, bytes and Pillow images to arrays, and back to Pillow."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flaxattn.errors import InputError, shown
from flaxattn.extras import require_extra
from flaxattn.layers.fields import checked

if TYPE_CHECKING:
    from PIL import Image

Encoded: TypeAlias = "str | Path | bytes | Image.Image"

_MODES = {1: "L", 3: "RGB"}


def pillow() -> ModuleType:
    """Pillow's module Image, imported with the first image: `import flaxattn` does without."""
    require_extra("hub", "PIL", doing="reading images")
    from PIL import Image

    return Image


@checked
def decode(image: Encoded, *, channels: int, name: str | None = None) -> np.ndarray:
    """The pixels of a file, of its bytes or of a Pillow image: uint8 (H, W, channels).

    Any mode becomes grey or RGB. Transparency is dropped, 16 bits become 8, and EXIF rotation is
    left alone, as in torchvision. JPEGs are decoded at full size: Pillow's draft mode would change
    what the crops see.

    Raises InputError with the name (by default the path) if there is no complete image.
    """
    if channels not in _MODES:
        raise InputError(f"channels={channels} must be 1 (grey) or 3 (RGB).")
    with _opened(image, name) as opened:
        return _pixels(opened, channels)


@checked
def decode_mask(mask: Encoded, *, num_classes: int, name: str | None = None) -> np.ndarray:
    """The class of each pixel, uint8 (H, W), from a palette or grey image; 255 is no class.

    A palette's colours are not looked at: the pixels' numbers are the classes.

    Raises InputError as `decode`, for an image in colours, and for a number that is no class.
    """
    with _opened(mask, name) as opened:
        mode, classes = opened.mode, np.array(opened)
    what = name or (mask if isinstance(mask, str | Path) else "the mask")
    if mode not in ("P", "L"):
        raise InputError(
            f"{what} is an image of mode {mode}: use a palette or grey image, whose pixels are the "
            f"classes' numbers."
        )
    largest = int(classes[classes < 255].max(initial=0))
    if largest >= num_classes:
        raise InputError(
            f"{what} has pixels of class {largest}: the classes are 0 to {num_classes - 1}, and "
            f"255 where there is none."
        )
    return classes


def image_size(image: Encoded, *, name: str | None = None) -> tuple[int, int]:
    """Height and width as the file's head says, without decoding. Raises InputError as `decode`."""
    with _opened(image, name) as opened:
        return opened.height, opened.width


def to_pillow(image: np.ndarray) -> "Image.Image":
    """The Pillow image, grey or RGB, of these pixels."""
    if image.ndim != 3 or image.shape[-1] not in _MODES or image.dtype != np.uint8:
        raise InputError(
            f"an image of shape {image.shape} and dtype {image.dtype} must be uint8 (H, W, C) with "
            f"C=1 (grey) or 3 (RGB)."
        )
    grey = image.shape[-1] == 1
    return pillow().fromarray(np.ascontiguousarray(image[..., 0] if grey else image))


def _pixels(image: "Image.Image", channels: int) -> np.ndarray:
    mode = _MODES[channels]
    if image.mode.startswith("I;16"):  # Pillow itself would make 255 of all above
        image = pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


@contextlib.contextmanager
def _opened(image: Encoded, name: str | None) -> Iterator["Image.Image"]:
    pil = pillow()
    if not isinstance(image, str | Path | bytes | pil.Image):
        raise InputError(f"{shown(image)} must be an image file's path, its bytes or Pillow image.")
    try:
        if isinstance(image, pil.Image):
            yield image
        else:
            with pil.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                yield opened
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        what = name or (image if isinstance(image, str | Path) else "the image")
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, pil.UnidentifiedImageError):
            reason = "Pillow does not know its format"
        raise InputError(
            f"{what} cannot be read as an image ({reason}): put a complete image in its place."
        ) from error
