import copy
import json
import logging
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from flaxattn.data import open_source
from flaxattn.data.records import IGNORED
from flaxattn.errors import InputError

# pycocotools 2.0.11 with NumPy 2, when it decodes run lengths.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONTENT = {
    "images": [
        {"id": 42, "file_name": "b.jpg", "width": 50, "height": 40},
        {"id": 7, "file_name": "a.jpg", "width": 30, "height": 20},
        {"id": 8, "file_name": "c.jpg", "width": 30, "height": 20},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"image_id": 8, "category_id": 18, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"image_id": 42, "category_id": 3, "bbox": [0, 0, 50, 40], "iscrowd": 1},
        {"image_id": 8, "category_id": 3, "bbox": [25, 15, 5.25, 5], "iscrowd": 0},
        {"image_id": 42, "category_id": 18, "bbox": [5, 6, 0, 8]},
    ],
}


def write(root, content):
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_val.json").write_text(json.dumps(content))
    return {"source": "coco", "name": "", "data_dir": str(root)}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "val").mkdir()
    for image in CONTENT["images"]:
        picture = Image.new("RGB", (image["width"], image["height"]))
        picture.save(tmp_path / "val" / image["file_name"])
    return tmp_path


def test_objects(root, caplog):
    with caplog.at_level(logging.WARNING, "flaxattn"):
        source = open_source(write(root, CONTENT), "val", annotation="objects")
    assert caplog.messages == [f"{root}/annotations/instances_val.json: 1 without area left out"]
    assert source.class_names == ("car", "dog")
    assert source.num_classes == 2
    records = [source[index] for index in range(len(source))]
    assert [record["name"] for record in records] == [f"{root}/val/{n}.jpg" for n in "bac"]
    assert records[0]["image"] == (root / "val/b.jpg").read_bytes()
    expected = [
        {
            "boxes": np.array([[0, 0, 50, 40]], np.float32),
            "labels": np.array([0], np.int32),
            "difficult": np.array([True]),
            "image_id": 42,
        },
        {
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
            "difficult": np.zeros(0, bool),
            "image_id": 7,
        },
        {
            "boxes": np.array([[1, 2, 4.5, 6], [25, 15, 30, 20]], np.float32),
            "labels": np.array([1, 0], np.int32),
            "difficult": np.array([False, False]),
            "image_id": 8,
        },
    ]
    objects = [record["objects"] for record in records]
    np.testing.assert_equal(objects, expected)
    for one, other in zip(objects, expected, strict=True):
        assert [one[key].dtype for key in ("boxes", "labels", "difficult")] == [
            other[key].dtype for key in ("boxes", "labels", "difficult")
        ]
    np.testing.assert_equal(pickle.loads(pickle.dumps(source))[2], source[2])


def test_classes_of_crowds_alone_count_nowhere(root):
    source = open_source(write(root, CONTENT), "val", annotation="classes")
    assert [source[index]["label"].tolist() for index in range(3)] == [[255, 0], [0, 0], [1, 1]]


def test_there_may_be_no_object_at_all(root):
    source = open_source(write(root, CONTENT | {"annotations": []}), "val", annotation="objects")
    assert source[2]["objects"]["boxes"].shape == (0, 4)


def square(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


# Image 8, of 20x30 pixels, has a dog of two parts, a car and another dog; 42, of 40x50, a crowd and
# a dog.
BODY, TAIL = square(0, 0, 8, 8), square(6, 0, 9, 5)
COLUMNS = {"size": [40, 50], "counts": [400, 800, 800]}  # 10 to 29
MASKED = CONTENT | {
    "annotations": [
        {"image_id": 8, "category_id": 18, "segmentation": [BODY, TAIL]},
        {"image_id": 42, "category_id": 3, "segmentation": COLUMNS, "iscrowd": 1},
        {"image_id": 8, "category_id": 3, "segmentation": [square(5, 4, 40, 10)]},
        {"image_id": 42, "category_id": 18, "segmentation": [square(0, 0, 20, 2)]},
        {"image_id": 8, "category_id": 18, "segmentation": [square(0, 6, 3, 12)]},
    ]
}
for number, each in enumerate(MASKED["annotations"]):
    each |= {"id": 100 + number, "bbox": [0, 0, 0, 0]}


def test_masks(root, caplog):
    source = open_source(write(root, MASKED), "val", annotation="masks")
    assert not caplog.messages
    assert source.class_names == ("background", "car", "dog")
    source = pickle.loads(pickle.dumps(source))
    crowded, empty, full = (source[index]["mask"] for index in range(3))
    assert {mask.dtype for mask in (crowded, empty, full)} == {np.dtype(np.uint8)}
    expected = np.zeros((40, 50), np.uint8)
    expected[:2, :10] = 2
    expected[:, 10:30] = IGNORED
    np.testing.assert_array_equal(crowded, expected)
    np.testing.assert_array_equal(empty, np.zeros((20, 30)))
    expected = np.zeros((20, 30), np.uint8)
    expected[:8, :8] = expected[:5, 6:9] = expected[6:12, :3] = 2
    expected[4:10, 5:] = 1
    expected[4:8, 5:8] = expected[4, 5:9] = expected[6:8, :3] = IGNORED
    np.testing.assert_array_equal(full, expected)


def test_a_wrong_segmentation_is_a_sentence_with_its_file_and_annotation(root):
    content = copy.deepcopy(MASKED)
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    source = open_source(write(root, content), "val", annotation="masks")
    assert source[0]["mask"].any()
    with pytest.raises(InputError, match=r"val\.json: the segmentation of annotation 102"):
        source[2]


def test_what_masks_cannot_be_made_of_is_refused_at_once(root, monkeypatch):
    for content, words in (
        (CONTENT, "fields .KeyError: 'id'.*for masks id and segmentation"),
        (
            CONTENT | {"categories": [{"id": i, "name": str(i)} for i in range(255)]},
            "255 categories, and masks hold 254",
        ),
    ):
        with pytest.raises(InputError, match=rf"instances_val\.json .*{words}"):
            open_source(write(root, content), "val", annotation="masks")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    open_source(write(root, CONTENT), "val", annotation="objects")


def changed(key, index, **fields):
    content = copy.deepcopy(CONTENT)
    content[key][index] |= fields
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed("annotations", 0, image_id=9), "image_id=9, which is not among its images"),
        (changed("annotations", 0, category_id=1), "category_id=1, .* not among its categories"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"fields \(ValueError: "),
        (changed("images", 0, id="b"), r"fields \(ValueError: .*each of its images needs id"),
        (changed("images", 0, id=2**40), r"fields \(OverflowError: "),
        ({"images": []}, r"fields \(KeyError: 'annotations'\): "),
        ([], r"fields \(TypeError: "),
    ],
    ids=range(7),
)
def test_wrong_content_is_a_sentence(root, content, words):
    with pytest.raises(InputError, match=rf"instances_val\.json.*{words}") as error:
        open_source(write(root, content), "val", annotation="objects")
    assert "\n" not in str(error.value)


def test_a_broken_file_is_a_sentence_with_its_line(root):
    config = write(root, CONTENT)
    (root / "annotations/instances_val.json").write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(InputError, match=r"instances_val\.json, line 2: Expecting value; put a"):
        open_source(config, "val", annotation="objects")


def test_what_is_missing_is_a_sentence(root, tmp_path_factory):
    config = write(root, CONTENT)
    with pytest.raises(InputError, match=r"unknown split of .*: 'vla': did you mean val\?"):
        open_source(config, "vla", annotation="objects")
    with pytest.raises(InputError, match="COCO folder is not read for image classification"):
        open_source(config, "val", annotation="class")
    (root / "val/a.jpg").unlink()
    with pytest.raises(InputError, match=r"val/a\.jpg cannot be read \(No such file"):
        open_source(config, "val", annotation="objects")[1]
    empty = {"source": "coco", "name": "", "data_dir": str(tmp_path_factory.mktemp("empty"))}
    with pytest.raises(InputError, match="is no COCO folder: give data_dir the folder"):
        open_source(empty, "val", annotation="objects")
