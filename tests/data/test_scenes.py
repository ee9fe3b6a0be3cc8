import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from flaxattn.data import open_source, scenes
from flaxattn.data.digits import pixels_and_labels, splits
from flaxattn.data.voc import VocSource


def mask(root, folder, name):
    return np.asarray(Image.open(root / folder / f"{name}.png"))


def test_boxes_are_tight_around_the_pixels_of_each_digit(scenes_root):
    """Boxes, classes and both masks say the same."""
    source = VocSource(scenes_root, "trainval", annotation="objects")
    masks = VocSource(scenes_root, "trainval", annotation="masks")
    assert len(source) == len(masks) == 18
    assert source.class_names == tuple("0123456789")
    assert masks.class_names == ("background", *"0123456789")
    for index in range(len(source)):
        objects, classes = source[index]["objects"], masks[index]["mask"]
        name = source[index]["name"].split("/")[-1].removesuffix(".jpg")
        numbers = mask(scenes_root, "SegmentationObject", name)
        assert set(np.unique(numbers)) - {0, 255} == set(range(1, len(objects["boxes"]) + 1))
        for number, (box, label) in enumerate(
            zip(objects["boxes"], objects["labels"], strict=True), 1
        ):
            rows, columns = np.nonzero(numbers == number)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == expected
            assert np.unique(classes[numbers == number]).tolist() == [label + 1]
        np.testing.assert_array_equal(classes == 0, numbers == 0)
        np.testing.assert_array_equal(classes == 255, numbers == 255)


def test_a_digit_can_be_told_from_the_ground(scenes_root):
    source = VocSource(scenes_root, "trainval", annotation="masks")
    for index in range(len(source)):
        record = source[index]
        grey = np.asarray(Image.open(io.BytesIO(record["image"])).convert("L"), np.float64)
        digits = (record["mask"] > 0) & (record["mask"] < 255)
        assert abs(grey[digits].mean() - grey[record["mask"] == 0].mean()) > 40


def test_the_masks_have_vocs_colours(scenes_root):
    palette = np.array(
        Image.open(scenes_root / "SegmentationClass/train_000000.png").getpalette()
    ).reshape(-1, 3)
    assert palette[[0, 1, 2, 3, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]


def test_training_scenes_have_digits_of_the_training_split_alone(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(scenes, "draw", lambda *given: drawn.append(given[1]))
    monkeypatch.setattr(scenes, "_write_scene", lambda *_: None)
    scenes.write(tmp_path, {"train": 300, "val": 100})
    images, _ = pixels_and_labels()
    for split, scenes_of_split in (("train", drawn[:300]), ("test", drawn[300:])):
        own = {image.tobytes() for image in images[splits()[split]]}
        assert {image.tobytes() for scene in scenes_of_split for image in scene} <= own


def test_a_scene_is_the_same_whatever_the_counts(scenes_root, tmp_path):
    scenes.write(tmp_path, {"train": 2, "val": 1})
    for name in ("Annotations/train_000001.xml", "Annotations/val_000000.xml"):
        assert (tmp_path / name).read_bytes() == (scenes_root / name).read_bytes()
    masks = "SegmentationClass/val_000000.png"
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / masks)), np.asarray(Image.open(scenes_root / masks))
    )


def test_the_scenes_are_drawn_once_and_for_all():
    """Of the pixels before they are compressed: if this changes, so must the VERSION."""
    images, labels = pixels_and_labels()
    scene = scenes.draw(np.random.RandomState(0), images[:6], labels[:6])
    digest = hashlib.sha256(scene.edges.tobytes())
    for digit in scene.digits:
        digest.update(digit.pixels.tobytes())
    assert digest.hexdigest()[:16] == "42647cc92a0fbea1"
    assert scene.picture.mean() == pytest.approx(145.554, abs=0.01)


def test_some_digits_are_difficult():
    images, labels = pixels_and_labels()
    digits = [
        digit
        for seed in range(60)
        for digit in scenes.draw(np.random.RandomState(seed), images[:6], labels[:6]).digits
    ]
    share = np.mean([digit.difficult for digit in digits])
    assert 0.02 < share < 0.2
    assert {digit.label for digit in digits} == set(range(6))


def test_the_scenes_are_prepared_on_the_spot(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="flaxattn")
    monkeypatch.setattr(scenes, "COUNTS", {"train": 3, "val": 2})
    config = {"source": "voc", "name": "scenes", "data_dir": str(tmp_path)}
    train, val = (open_source(config, split, annotation="objects") for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    assert f"drawing 5 pictures of digits in {tmp_path}" in caplog.text
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == [scenes.VERSION]
    monkeypatch.setattr(scenes, "write", lambda *_: pytest.fail("written twice"))
    assert len(open_source(config, "trainval", annotation="classes")) == 5


def test_another_process_may_be_first(tmp_path, monkeypatch):
    def lose(root):
        (tmp_path / "scenes" / scenes.VERSION).mkdir()
        (tmp_path / "scenes" / scenes.VERSION / "theirs").touch()
        root.mkdir()

    monkeypatch.setattr(scenes, "write", lose)
    folder = scenes.prepare(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(root):
        root.mkdir()
        raise OSError("full")

    monkeypatch.setattr(scenes, "write", fail)
    with pytest.raises(OSError, match="full"):
        scenes.prepare(tmp_path)
    assert list((tmp_path / "scenes").iterdir()) == []
