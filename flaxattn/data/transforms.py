"""Image transforms in NumPy and Pillow; each is a pure function of the image and the generator.

Images are uint8 arrays (H, W, C) with C = 1 (grey) or 3 (RGB). Nothing is changed in place, and
equal generators give equal answers. Sizes are in pixels; resizing is bilinear with antialiasing,
as torchvision's on PIL images.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from flaxattn.data.sources import Record
from flaxattn.errors import InputError, unknown

Transform = Callable[[Record], "Example"]
RandomTransform = Callable[[Record, np.random.Generator], "Example"]


class Example(TypedDict):
    """What a network is trained on: image float32 (size, size, C), label int32 () or (K,)."""

    image: np.ndarray
    label: np.ndarray


def decode(record: Record, *, channels: int) -> np.ndarray:
    """The image of a record: uint8 (H, W, channels), converted to grey or RGB where it is neither.

    Transparency is dropped, 16 bits become 8, and EXIF rotation is left alone, as in torchvision.
    JPEGs are decoded at full size: Pillow's draft mode would change what the crops see.

    Raises InputError naming the record if its bytes are no complete image.
    """
    mode = _mode(channels)
    try:
        with Image.open(io.BytesIO(record["image"])) as image:
            if image.mode == mode:
                pixels = np.asarray(image)
            elif image.mode.startswith("I;16"):
                grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                pixels = np.asarray(grey.convert(mode))
            else:
                pixels = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown_format = isinstance(error, UnidentifiedImageError)
        raise InputError(
            f"{record['name']} cannot be read as an image "
            f"({'its format is none that Pillow knows' if unknown_format else error}): "
            f"replace it."
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


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
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return _resize(image[top : top + h, left : left + w], size, size)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = max(1, min(width, round(height * aspect)))
    h = max(1, min(height, round(width / aspect)))
    return _resize(_center(image, h, w), size, size)


def padded_crop(
    image: np.ndarray, rng: np.random.Generator, *, size: int, padding: int
) -> np.ndarray:
    """A random window (size, size, C) of the image padded with `padding` zeros on every side.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: 4 pixels
    for the 32x32 images of CIFAR-10.

    Raises InputError if the padded image is smaller than the window.
    """
    height, width = image.shape[:2]
    rows, columns = height + 2 * padding - size, width + 2 * padding - size
    if min(rows, columns) < 0:
        raise InputError(
            f"no window of {size}x{size} fits into an image of {height}x{width} padded by "
            f"{padding}: resize it to at least {size} or pad by at least "
            f"{-(-(size - min(height, width)) // 2)}."
        )
    top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
    padded = np.zeros((height + 2 * padding, width + 2 * padding, image.shape[2]), image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    return padded[top : top + size, left : left + size]


def horizontal_flip(
    image: np.ndarray, rng: np.random.Generator, *, probability: float = 0.5
) -> np.ndarray:
    """The image or, with `probability`, its mirror image, left to right."""
    return image[:, ::-1] if rng.random() < probability else image


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 10 / 3),
    value: float = 0,
) -> np.ndarray:
    """The image, in its own dtype; with `probability` a random rectangle of it holds `value`.

    The rectangle's area is drawn from `scale` times the image's and its height over width
    log-uniformly from `ratio`; where ten draws do not fit inside, nothing is erased. After
    `normalise` a value of 0 is the mean colour.

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896. Deviations: one
    value instead of noise, the ratio log-uniform and ten draws, as in torchvision.
    """
    if rng.random() >= probability:
        return image
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            erased = image.copy()
            erased[top : top + h, left : left + w] = value
            return erased
    return image


def resize_shorter_side(image: np.ndarray, *, size: int) -> np.ndarray:
    """The image with its shorter side resized to `size` and its proportions kept."""
    height, width = image.shape[:2]
    if height <= width:
        return _resize(image, size, int(size * width / height))
    return _resize(image, int(size * height / width), size)


def resize_center_crop(image: np.ndarray, *, resize: int, size: int) -> np.ndarray:
    """The central (size, size, C) of the image, its shorter side first resized to `resize`."""
    return _center(resize_shorter_side(image, size=resize), size, size)


def normalise(image: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(image / 255 - mean) / std as float32; mean and std per channel, in units of 0 to 1."""
    scale = np.float32(255) * np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return image.astype(np.float32) / scale - shift


Operation = Callable[[Image.Image, float], Image.Image]

# RandAugment's operations on Pillow images, at a strength of -1 to 1; the ranges and signs are
# torchvision's.


def _identity(image: Image.Image, _: float) -> Image.Image:
    return image


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )


def _shear_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0.3 * strength, 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0.3 * strength, 1, 0)


def _translate_x(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, -int(150 / 331 * image.width * strength), 0, 1, 0)


def _translate_y(image: Image.Image, strength: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, -int(150 / 331 * image.height * strength))


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(30 * strength, Image.Resampling.BILINEAR)


def _posterize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(strength)))


def _solarize(image: Image.Image, strength: float) -> Image.Image:
    return ImageOps.solarize(image, math.ceil(255 * (1 - abs(strength))))


def _auto_contrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def _brightness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength)


def _color(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + 0.9 * strength)


def _contrast(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength)


def _sharpness(image: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength)


RANDAUGMENT: dict[str, Operation] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
_OPERATIONS = tuple(RANDAUGMENT.values())


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, *, num_ops: int = 2, magnitude: float = 9
) -> np.ndarray:
    """`num_ops` operations drawn from `RANDAUGMENT`, one after the other, at one magnitude.

    The magnitude is 0 to 30. At 30 images are sheared by 0.3, moved by 150 / 331 of their size,
    rotated by 30 degrees, changed by 90 % in brightness, colour, contrast and sharpness, posterized
    to 4 bits and fully solarized. What enters from outside is black.

    Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
    NeurIPS 2020, arXiv:1909.13719; the ranges are torchvision's. Deviation from the paper's code:
    what enters is black instead of grey, and the interpolation is bilinear.

    Raises InputError for a magnitude outside 0 to 30.
    """
    if not 0 <= magnitude <= 30:
        raise InputError(f"a RandAugment magnitude of {magnitude} is not within 0 to 30: use 9.")
    augmented = _to_pillow(image)
    for _ in range(num_ops):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        sign = 1 - 2 * int(rng.integers(2))
        augmented = operation(augmented, sign * magnitude / 30)
    return np.asarray(augmented).reshape(image.shape)


def train_transform(config: Mapping[str, Any]) -> RandomTransform:
    """The augmentation that a config asks for, from a record and a generator to an example.

    Args:
        config: `image_size`, `channels`, `mean`, `std`, `eval_resize`, and under `augment`: `crop`
            ("resized": `random_resized_crop` with `scale` and `ratio`; "padded": the shorter side
            resized to image_size, then `padded_crop` with `padding`; "center": as in evaluation),
            `flip`, `randaugment_ops` (0: none) and `randaugment_magnitude`, and `erasing`, the
            probability of `random_erasing` with the mean colour. Applied in this order.

    Raises InputError for an unknown crop and for what `eval_transform` refuses.
    """
    channels, size, mean, std, resize = _checked(config)
    augment = config["augment"]
    scale, ratio, padding = tuple(augment["scale"]), tuple(augment["ratio"]), augment["padding"]
    flip, erasing = augment["flip"], augment["erasing"]
    num_ops, magnitude = augment["randaugment_ops"], augment["randaugment_magnitude"]

    def resized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return random_resized_crop(image, rng, size=size, scale=scale, ratio=ratio)

    def padded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = resize_shorter_side(image, size=size)
        return padded_crop(image, rng, size=size, padding=padding)

    def center(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return resize_center_crop(image, resize=resize, size=size)

    crops = {"resized": resized, "padded": padded, "center": center}
    if augment["crop"] not in crops:
        raise unknown("crop", augment["crop"], crops)
    crop = crops[augment["crop"]]

    def transform(record: Record, rng: np.random.Generator) -> Example:
        image = crop(decode(record, channels=channels), rng)
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
    """Shorter side to `eval_resize`, central `image_size`, normalised: a record to an example.

    Args:
        config: `image_size`, `channels` (1 or 3), `mean` and `std` (one number per channel, in
            units of 0 to 1), `eval_resize` (at least image_size; equal means no margin).

    Raises InputError for values that do not go together.
    """
    channels, size, mean, std, resize = _checked(config)

    def transform(record: Record) -> Example:
        image = resize_center_crop(decode(record, channels=channels), resize=resize, size=size)
        return {
            "image": normalise(image, mean=mean, std=std),
            "label": np.asarray(record["label"], np.int32),
        }

    return transform


def _checked(
    config: Mapping[str, Any],
) -> tuple[int, int, tuple[float, ...], tuple[float, ...], int]:
    channels, size, resize = config["channels"], config["image_size"], config["eval_resize"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    _mode(channels)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise InputError(
            f"mean={mean} and std={std} do not fit channels={channels}: give each one number per "
            f"channel, those of std above 0."
        )
    if not 0 < size <= resize:
        raise InputError(
            f"image_size={size} cannot be cut out of a shorter side of eval_resize={resize}: use "
            f"an eval_resize of at least image_size, and both above 0."
        )
    return channels, size, mean, std, resize


def _mode(channels: int) -> str:
    if channels not in (1, 3):
        raise InputError(f"channels={channels} is neither 1 (grey) nor 3 (RGB): use one of these.")
    return "L" if channels == 1 else "RGB"


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    resized = _to_pillow(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, image.shape[-1])


def _center(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top = round((image.shape[0] - height) / 2)
    left = round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]
