"""What was found stands below what is true, of the images that are there."""

import numpy as np
import pytest

from flaxattn.images.drawing import COLOURS, PICTURE
from flaxattn.tasks import Classification, Detection, MultiLabel, Segmentation
from flaxattn.tasks.detection import Found
from flaxattn.train.pictures import draw, title

CONFIG = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
NAMES = ("cat", "dog", "owl")
SHOWN, ROWS = 3, 4


class Named:
    class_names = NAMES


def batch(**fields):
    """Four rows of a middle grey, of which the second is padding."""
    mask = np.array([1, 0, 1, 1], np.float32)
    return {"image": np.zeros((ROWS, 32, 64, 3), np.float32), "mask": mask, **fields}


def cells(sheet):
    """Its pictures, two rows of columns: (true, found) of each example."""
    left, gap = title("").shape[1], 4
    half = (sheet.shape[0] - 3 * gap) // 2
    columns = []
    for start in range(left + 2 * gap, sheet.shape[1] - gap, PICTURE + gap):
        column = sheet[:, start : start + PICTURE]
        columns.append((column[gap : gap + half], column[2 * gap + half : 2 * (gap + half)]))
    return columns


@pytest.mark.parametrize(
    ("task", "labels", "found"),
    [
        (Classification(3, (32, 64, 3)), np.array([0, 1, 2, 0]), np.eye(3)),
        (MultiLabel(3, (32, 64, 3)), np.eye(4, 3, dtype=np.int32), np.eye(3)),
    ],
    ids=["class", "classes"],
)
def test_names_of_what_is_and_of_what_was_found(task, labels, found):
    sheet = draw(task, batch(label=labels), found.astype(np.float32), Named(), CONFIG)
    assert len(cells(sheet)) == SHOWN - 1
    for true, likely in cells(sheet):
        assert (true != 128).any()  # a caption
        assert (likely != true).any()  # with a probability behind it


def test_classes_of_pixels():
    labels, found = np.zeros((ROWS, 32, 64), np.int32), np.zeros((SHOWN, 32, 64), np.int32)
    labels[:, :16], labels[:, 16:, :32] = 1, 255
    found[:] = 2
    task = Segmentation(3, (32, 64, 3))
    for true, likely in cells(draw(task, batch(label=labels), found, Named(), CONFIG)):
        assert true.shape == (PICTURE // 2, PICTURE, 3)
        np.testing.assert_array_equal(true[10, 10], 64 + COLOURS[1] // 2)
        np.testing.assert_array_equal(likely[10, 10], 64 + COLOURS[2] // 2)
        np.testing.assert_array_equal(true[-10], 128)
        np.testing.assert_array_equal(likely[-10, 10], 128)  # where no class counts
        np.testing.assert_array_equal(likely[-10, -10], 64 + COLOURS[2] // 2)


def test_boxes_of_what_is_there_in_the_pixels_of_the_canvas():
    boxes = np.tile(np.array([[4, 4, 20, 20], [0, 0, 0, 0]], np.float32), (ROWS, 1, 1))
    objects = {
        "size": np.tile([32, 32], (ROWS, 1)),
        "boxes": boxes,
        "labels": np.ones((ROWS, 2), np.int32),
        "valid": np.tile([True, False], (ROWS, 1)),
    }
    scores = np.tile(np.array([0.9, 0.2], np.float32), (SHOWN, 1))
    labels, valid = np.full((SHOWN, 2), 2, np.int32), np.full((SHOWN, 2), True)
    found = Found(boxes[:SHOWN] + 4, scores, labels, valid)
    task = Detection(3, (32, 64, 3), max_objects=2)
    for true, likely in cells(draw(task, batch(**objects), found, Named(), CONFIG)):
        assert true.shape == (PICTURE, PICTURE, 3)  # cut to the image, and drawn eight times larger
        for picture, label, edge in ((true, 1, 32), (likely, 2, 64)):
            drawn = np.argwhere((picture == COLOURS[label + 1]).all(axis=-1))
            assert drawn.min(axis=0).tolist() == [edge, edge]
            assert drawn.max(axis=0).tolist() == [edge + 127, edge + 127]
