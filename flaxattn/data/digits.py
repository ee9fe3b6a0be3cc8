"""The handwritten digits that ship with scikit-learn, as a TFDS data set that needs no download.

python -m flaxattn.data.digits [--data_dir DIR]
"""

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

TEST_SHARE = 0.2


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
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        labels = load_digits().target
        test = test_indices(labels)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict]]:
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for index in indices.tolist():
            # Already encoded, for TFDS would need TensorFlow to encode an array.
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, format="PNG")
            png.seek(0)
            yield index, {"image": png, "label": int(digits.target[index])}


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


def prepare(data_dir: str | os.PathLike | None = None) -> Digits:
    """The builder of `digits`, prepared in `data_dir` (None or "": TFDS's own) if it was not.

    The files are written beside their place and moved there in one step, so processes that start
    together do not disturb each other and a prepare that is killed leaves nothing half-written.
    """
    builder = Digits(data_dir=data_dir or None)
    if not builder.data_path.exists():
        try:
            # TFDS prints that it downloads something, which is not so.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format="array_record")
        except OSError:
            # Another process may have moved its own copy there first; that one is as good.
            builder = Digits(data_dir=data_dir or None)
            if not builder.data_path.exists():
                raise
    return builder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flaxattn.data.digits", description=__doc__)
    parser.add_argument("--data_dir", help="where TFDS keeps its data sets; TFDS's own by default")
    builder = prepare(parser.parse_args().data_dir)
    counts = ", ".join(f"{s.num_examples} {name}" for name, s in builder.info.splits.items())
    print(f"digits is prepared in {builder.data_dir}: {counts} images")


if __name__ == "__main__":
    main()
