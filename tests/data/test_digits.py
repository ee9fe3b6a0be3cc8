import hashlib
import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs import cluttered_digits
from flaxattn.data import digits
from flaxattn.errors import InputError

ROOT = Path(__file__).parent.parent.parent


def python(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def splits(data_dir):
    """(images (N, 8, 8) uint8, labels (N,)) of each split, decoded by TFDS itself."""
    builder = digits.prepare(data_dir)
    decoded = {}
    for split in ("train", "test"):
        examples = list(builder.as_data_source(split))
        for example in examples:
            assert example["image"].shape == (8, 8, 1)
            assert example["image"].dtype == np.uint8
        decoded[split] = (
            np.stack([example["image"][..., 0] for example in examples]),
            np.array([example["label"] for example in examples]),
        )
    return decoded


def test_no_grey_level_and_no_label_is_lost(splits):
    images = np.concatenate([splits["train"][0], splits["test"][0]])
    labels = np.concatenate([splits["train"][1], splits["test"][1]])
    levels = np.round(images * (16 / 255)).astype(int)
    assert images.max() == 255
    assert images.min() == 0
    original = load_digits()
    expected = {
        (tuple(image.astype(int).ravel()), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    }
    assert len(expected) == 1797, "the test needs images that differ"
    found = [
        (tuple(image.ravel()), int(label)) for image, label in zip(levels, labels, strict=True)
    ]
    assert set(found) == expected
    assert len(found) == 1797


def test_splits_are_disjoint(splits):
    train, test = ({image.tobytes() for image in splits[name][0]} for name in ("train", "test"))
    assert not train & test
    assert (len(train), len(test)) == (1438, 359)


def test_each_class_gives_a_fifth_to_the_test_split(splits):
    train, test = (np.bincount(splits[name][1], minlength=10) for name in ("train", "test"))
    assert np.all(np.abs(test - 0.2 * (train + test)) <= 0.5)


def test_the_split_never_changes():
    indices = digits.test_indices(load_digits().target)
    digest = hashlib.sha256(indices.astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "b9ea438bddef5dd6"


def test_images_are_png(data_dir):
    import tensorflow_datasets as tfds

    source = digits.prepare(data_dir).as_data_source(
        "test", decoders={"image": tfds.decode.SkipDecoding()}
    )
    with Image.open(io.BytesIO(source[0]["image"])) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))


@pytest.fixture(scope="module")
def groups(data_dir):
    """(pictures (N, 24, 24) uint8, labels: N lists) of each split, decoded by TFDS itself."""
    builder = digits.prepare(data_dir, name="digit_groups")
    assert builder.info.file_format.value == "array_record"
    decoded = {}
    for split in ("train", "test"):
        examples = list(builder.as_data_source(split))
        pictures = np.stack([example["image"][..., 0] for example in examples])
        decoded[split] = pictures, [example["labels"] for example in examples]
    return decoded


@pytest.mark.parametrize("split", ["train", "test"])
def test_groups_are_made_of_the_digits_of_their_split_side_by_side(groups, splits, split):
    known = {image.tobytes(): label for image, label in zip(*splits[split], strict=True)}
    assert len(known) == len(splits[split][0])
    pictures, labels = groups[split]
    numbers = set()
    for picture, digits_there in zip(pictures[:200], labels[:200], strict=True):
        rebuilt, found = np.zeros_like(picture), []
        for top, left in np.ndindex(17, 17):
            window = picture[top : top + 8, left : left + 8]
            if (label := known.get(window.tobytes())) is not None:
                assert not rebuilt[top : top + 8, left : left + 8].any()
                rebuilt[top : top + 8, left : left + 8] = window
                found.append(label)
        np.testing.assert_array_equal(rebuilt, picture)
        assert sorted(set(found)) == digits_there
        numbers.add(len(found))
    assert numbers == {1, 2, 3, 4}


def test_groups_never_change(groups):
    assert {split: len(pictures) for split, (pictures, _) in groups.items()} == {
        "train": 4000,
        "test": 500,
    }
    content = b"".join(pictures.tobytes() for pictures, _ in groups.values())
    assert hashlib.sha256(content).hexdigest()[:16] == "b820b3280d78daf7"


@pytest.fixture(scope="module")
def clutter(data_dir):
    """(pictures (N, 32, 32) uint8, labels (N,)) of each split, decoded by TFDS itself."""
    builder = digits.prepare(data_dir, name="cluttered_digits")
    decoded = {}
    for split in ("train", "test"):
        examples = list(builder.as_data_source(split))
        pictures = np.stack([example["image"][..., 0] for example in examples])
        decoded[split] = pictures, np.array([example["label"] for example in examples])
    return decoded


def test_clutter_never_changes(clutter):
    counts = {split: len(pictures) for split, (pictures, _) in clutter.items()}
    assert counts == {"train": 8000, "test": 2000}
    content = b"".join(pictures.tobytes() for pictures, _ in clutter.values())
    assert hashlib.sha256(content).hexdigest()[:16] == "8ba698fcfb73df45"


def test_the_config_states_the_clutters_mean_and_deviation(clutter):
    config = cluttered_digits.get_config("none").data
    pictures = clutter["train"][0] / 255
    assert (pictures.mean(), pictures.std()) == pytest.approx((*config.mean, *config.std), abs=1e-3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_clutter_is_made_of_the_digits_of_its_split(clutter, splits, split, monkeypatch, tmp_path):
    """Labels are those of the digits that stand whole."""
    made = []
    monkeypatch.setattr(digits, "cluttered", lambda _, images: made.append(images) or images[0])
    seed = ["train", "test"].index(split)
    generate = digits.ClutteredDigits(data_dir=tmp_path)._generate_examples
    examples = [example for _, example in generate(digits.splits()[split], 50, seed)]
    known = {image.tobytes(): label for image, label in zip(*splits[split], strict=True)}
    assert all(image.tobytes() in known for images in made for image in images)
    assert [known[images[0].tobytes()] for images in made] == [e["label"] for e in examples]
    assert set(clutter[split][1].tolist()) == set(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_a_whole_digit_is_scaled_and_placed(seed):
    ink = np.full((1, 8, 8), 200, np.uint8)
    picture = digits.cluttered(np.random.RandomState(seed), ink)
    (height, width) = (np.ptp(np.flatnonzero(picture.any(axis))) + 1 for axis in (1, 0))
    assert height == width
    assert 12 <= height <= 20
    assert np.count_nonzero(picture) == np.count_nonzero(picture == 200) == height * width


def test_pieces_are_small_and_the_lighter_ink_is_seen():
    random = np.random.RandomState(0)
    ink = np.array([0, 100, 250], np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    picture = digits.cluttered(random, ink)
    assert np.count_nonzero(picture == 250) == 36
    assert np.count_nonzero(picture == 100) <= 36


def test_prepared_as_array_record_and_only_once(tmp_path):
    first = digits.prepare(tmp_path)
    assert first.info.file_format.value == "array_record"
    (info,) = tmp_path.glob("digits/*/dataset_info.json")
    written = info.stat().st_mtime_ns
    second = digits.prepare(tmp_path)
    assert info.stat().st_mtime_ns == written
    assert second.info.splits["train"].num_examples == 1438


def test_the_loser_of_a_race_uses_what_the_winner_prepared(tmp_path, monkeypatch):
    generate = digits.Digits._split_generators
    winners = []

    def overtaken(self, dl_manager):
        monkeypatch.setattr(digits.Digits, "_split_generators", generate)
        winners.append(digits.prepare(tmp_path))
        return generate(self, dl_manager)

    monkeypatch.setattr(digits.Digits, "_split_generators", overtaken)
    builder = digits.prepare(tmp_path)
    assert len(winners) == 1
    assert len(builder.as_data_source("train")) == 1438
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_prepare_that_is_killed_leaves_nothing_half_written(tmp_path):
    killed = python(
        "-c",
        f"""
import os, signal
from flaxattn.data import digits

generate = digits.Digits._generate_examples
def deadly(self, indices):
    for number, example in enumerate(generate(self, indices)):
        if number == 300:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example
digits.Digits._generate_examples = deadly
digits.prepare({str(tmp_path)!r})
""",
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.glob("digits/incomplete*")), "killed before it wrote anything"
    assert len(digits.prepare(tmp_path).as_data_source("train")) == 1438


def test_an_error_that_is_no_race_is_raised(tmp_path):
    (tmp_path / "digits").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"data_dir=.*Not a directory.*can be written"):
        digits.prepare(tmp_path)
