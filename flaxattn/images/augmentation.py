"""RandAugment and random erasing."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from flaxattn.errors import InputError, require_range
from flaxattn.images.decoding import to_pillow
from flaxattn.images.geometry import random_sides, random_window, sides
from flaxattn.layers.fields import checked


@checked
def random_erasing(
    image: np.ndarray, rng: np.random.Generator, *, probability: float
) -> np.ndarray:
    """The image, in its own dtype; with `probability` a random rectangle of it is zero.

    The rectangle has 0.02 to 1 / 3 of the area. Its height over width is log-uniform from 0.3 to
    10 / 3. Where ten draws do not fit inside, nothing is erased. After `normalise` zero is the mean
    colour.

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896. Deviations: one
    value instead of noise, the ratio log-uniform and ten draws, as in torchvision.
    """
    require_range("probability", probability, 0, 1)
    if rng.random() >= probability:
        return image
    height, width = sides(image)
    for h, w in random_sides(height * width, rng, (0.02, 1 / 3), (0.3, 10 / 3)):
        if 0 < h < height and 0 < w < width:
            erased = image.copy()
            erased[random_window(image, rng, h, w)] = 0
            return erased
    return image


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )


def _shift(side: int, strength: float) -> int:
    return -int(150 / 331 * side * strength)


# On Pillow images, at a strength of -1 to 1; the ranges and signs are torchvision's.
RANDAUGMENT: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, s: _affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "ShearY": lambda image, s: _affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "TranslateX": lambda image, s: _affine(image, 1, 0, _shift(image.width, s), 0, 1, 0),
    "TranslateY": lambda image, s: _affine(image, 1, 0, 0, 0, 1, _shift(image.height, s)),
    "Rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR),
    "Brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "Color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "Contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "Sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "Posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "Solarize": lambda image, s: ImageOps.solarize(image, math.ceil(255 * (1 - abs(s)))),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}


@checked
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

    Raises InputError for a magnitude outside 0 to 30 and for more than 100 operations.
    """
    require_range("num_ops", num_ops, 0, 100)
    if not 0 <= magnitude <= 30:
        raise InputError(f"a RandAugment magnitude of {magnitude} is not within 0 to 30: use 9.")
    operations = list(RANDAUGMENT.values())
    augmented = to_pillow(image)
    for _ in range(num_ops):
        operation = operations[rng.integers(len(operations))]
        sign = 1 - 2 * int(rng.integers(2))
        augmented = operation(augmented, sign * magnitude / 30)
    return np.asarray(augmented).reshape(image.shape)
