"""The handwritten digits that ship with scikit-learn, as TFDS data sets that need no download."""

import abc
import contextlib
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from flaxattn.errors import InputError, shown
from flaxattn.images.geometry import interpolate

TEST_SHARE = 0.2

_LABEL = tfds.features.ClassLabel(names=[str(digit) for digit in range(10)])


def _info(
    builder: tfds.core.DatasetBuilder, description: str, *, side: int, **labels: Any
) -> tfds.core.DatasetInfo:
    """What TFDS asks about a set of grey pictures (side, side, 1) and the feature of its labels."""
    image = tfds.features.Image(shape=(side, side, 1), encoding_format="png")
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict({"image": image, **labels}),
        supervised_keys=("image", *labels),
        homepage="https://doi.org/10.24432/C50P49",
    )


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels in 17 grey levels, from scikit-learn.

    Features: image (8, 8, 1) uint8, a PNG; label 0 to 9. The grey levels 0 to 16 are stored as
    round(level * 255 / 16), so black is 0, white 255 and no level is lost.

    Splits: train and test, 80 % and 20 % of each class, always the same.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49: the test part of that collection.
    """

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "All 1,797 images of scikit-learn's load_digits."}
    # There is no list of checksums beside this file, and TFDS's search for one needs the package
    # importlib_resources, which it forgets to install.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(
            self, "Handwritten digits of 8x8 pixels, from scikit-learn.", side=8, label=_LABEL
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {name: self._generate_examples(indices) for name, indices in splits().items()}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict]]:
        images, labels = pixels_and_labels()
        for index in indices.tolist():
            yield index, {"image": png(images[index]), "label": int(labels[index])}


class _Drawn(abc.ABC):
    """A set whose pictures are drawn of the digits of each split, once and for all.

    Fields:
        COUNTS: of the pictures of "train" and "test".
    """

    COUNTS: ClassVar[dict[str, int]]

    @abc.abstractmethod
    def draw(
        self, random: np.random.RandomState, images: np.ndarray, labels: np.ndarray
    ) -> dict[str, Any]:
        """An example, of a split's digits (n, 8, 8) uint8 and their labels (n,)."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        indices = splits()
        return {
            name: self._generate_examples(indices[name], count, seed)
            for seed, (name, count) in enumerate(self.COUNTS.items())
        }

    def _generate_examples(
        self, indices: np.ndarray, count: int, seed: int
    ) -> Iterator[tuple[int, dict]]:
        images, labels = pixels_and_labels()
        images, labels = images[indices], labels[indices]
        random = np.random.RandomState(seed)
        for key in range(count):
            yield key, self.draw(random, images, labels)


class DigitGroups(_Drawn, tfds.core.GeneratorBasedBuilder):
    """4,500 pictures of 24x24 pixels, each of one to four digits of `Digits` at random places.

    Features: image (24, 24, 1) uint8, a PNG; labels, which of 0 to 9 are there. The digits of a
    picture do not overlap, and one may be there twice.

    Splits: train, 4,000 pictures of digits from the train split of `Digits`, and test, 500 pictures
    of digits from its test split. They are drawn once and for all.
    """

    name = "digit_groups"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "4,000 training and 500 test pictures."}
    code_path = None
    COUNTS: ClassVar = {"train": 4000, "test": 500}

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(
            self,
            "Pictures of one to four handwritten digits, from scikit-learn.",
            side=24,
            labels=tfds.features.Sequence(_LABEL),
        )

    def draw(
        self, random: np.random.RandomState, images: np.ndarray, labels: np.ndarray
    ) -> dict[str, Any]:
        chosen = random.choice(len(labels), random.randint(1, 5), replace=False)
        picture = np.zeros((24, 24), np.uint8)
        for (top, left), image in zip(places(random, len(chosen)), images[chosen], strict=True):
            picture[top : top + 8, left : left + 8] = image
        return {"image": png(picture), "labels": np.unique(labels[chosen]).tolist()}


class ClutteredDigits(_Drawn, tfds.core.GeneratorBasedBuilder):
    """10,000 pictures of 32x32 pixels, each of one digit of `Digits` among pieces of others.

    Features: image (32, 32, 1) uint8, a PNG; label, of the whole digit. Its square has a side of 12
    to 20 pixels and lies anywhere; so do four pieces of 6x6 pixels, cut from digits of that size.
    Where they overlap, the lighter ink is seen. In the manner of Mnih, Heess, Graves, Kavukcuoglu,
    "Recurrent Models of Visual Attention", NeurIPS 2014, arXiv:1406.6247, and of Jaderberg et al.,
    "Spatial Transformer Networks", NeurIPS 2015, arXiv:1506.02025.

    Splits: train, 8,000 pictures of digits from the train split of `Digits`, and test, 2,000
    pictures of digits from its test split. They are drawn once and for all.
    """

    name = "cluttered_digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "8,000 training and 2,000 test pictures."}
    code_path = None
    COUNTS: ClassVar = {"train": 8000, "test": 2000}

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(
            self, "Pictures of a handwritten digit among pieces of others.", side=32, label=_LABEL
        )

    def draw(
        self, random: np.random.RandomState, images: np.ndarray, labels: np.ndarray
    ) -> dict[str, Any]:
        chosen = random.choice(len(labels), 1 + 4, replace=False)
        picture = cluttered(random, images[chosen])
        return {"image": png(picture), "label": int(labels[chosen[0]])}


def cluttered(random: np.random.RandomState, images: np.ndarray) -> np.ndarray:
    """A picture (32, 32) of the first of the digits (n, 8, 8), and a piece of each other, uint8."""
    side = random.randint(12, 20 + 1)
    scaled = interpolate(np.moveaxis(images, 0, -1).astype(np.float32), side, side)
    whole, *others = np.moveaxis(scaled, -1, 0)
    picture = np.zeros((32, 32), np.float32)
    for part in (whole, *(_piece(random, other) for other in others)):
        top, left = random.randint(0, 32 - len(part) + 1, 2)
        window = picture[top : top + len(part), left : left + len(part)]
        np.maximum(window, part, out=window)
    return np.round(picture).astype(np.uint8)


def _piece(random: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """A square of 6 pixels of a larger one."""
    top, left = random.randint(0, len(image) - 6 + 1, 2)
    return image[top : top + 6, left : left + 6]


def places(random: np.random.RandomState, count: int) -> list[list[int]]:
    """(top, left) of `count` squares of 8 pixels that lie apart in a picture of 24."""
    while True:
        corners = random.randint(0, 24 - 8 + 1, (count, 2)).tolist()
        pairs = itertools.combinations(corners, 2)
        if all(abs(a - c) >= 8 or abs(b - d) >= 8 for (a, b), (c, d) in pairs):
            return corners


def pixels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images (1797, 8, 8) uint8, and labels."""
    # Imported here: it takes a second, and a prepared set does without.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def png(pixels: np.ndarray) -> io.BytesIO:
    """An image as TFDS takes it encoded already; to encode it itself it would need TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    file.seek(0)
    return file


def splits() -> dict[str, np.ndarray]:
    """The indices of the digits of each split."""
    _, labels = pixels_and_labels()
    test = test_indices(labels)
    return {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}


def test_indices(labels: np.ndarray) -> np.ndarray:
    """Sorted indices of the test split: a fifth of each class, drawn once and for all.

    Drawn with `RandomState`, whose numbers NumPy has promised never to change.
    """
    random = np.random.RandomState(0)
    chosen = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: round(TEST_SHARE * len(members))])
    return np.sort(np.concatenate(chosen))


# Sets that are made on the spot, from what scikit-learn brings along.
EMBEDDED = {builder.name: builder for builder in (Digits, DigitGroups, ClutteredDigits)}


def prepare(
    data_dir: str | os.PathLike | None = None, *, name: str = "digits"
) -> tfds.core.GeneratorBasedBuilder:
    """The builder of a set, prepared in `data_dir` (None or "": TFDS's own) if it was not.

    The files are written beside their place and moved there in one step, so processes that start
    together do not disturb each other and a prepare that is killed leaves nothing half-written.

    Raises InputError for a folder that cannot be written.
    """
    make = functools.partial(EMBEDDED[name], data_dir=data_dir or None)
    try:
        return _prepared(make)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{name} cannot be prepared in data_dir={shown(str(data_dir or ''))} ({reason}): give "
            f"a folder that can be written."
        ) from error


def _prepared(
    make: Callable[[], tfds.core.GeneratorBasedBuilder],
) -> tfds.core.GeneratorBasedBuilder:
    builder = make()
    if not builder.data_path.exists():
        try:
            # TFDS prints that it downloads something, which is not so.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record")
        except OSError:
            # Another process may have moved its own copy there first; that one is as good.
            builder = make()
            if not builder.data_path.exists():
                raise
    return builder
