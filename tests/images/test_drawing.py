import numpy as np
import pytest

from flaxattn.images.drawing import (
    COLOURS,
    fitted,
    table,
    with_boxes,
    with_caption,
    with_classes,
    with_names,
)

GREY = np.full((40, 60, 3), 128, np.uint8)


def test_a_box_is_drawn_along_its_own_pixels():
    boxes = np.array([[10, 20, 30, 36]], np.float32)
    drawn = with_boxes(GREY, boxes, [4], [""])
    changed = np.argwhere((drawn == COLOURS[5]).all(axis=-1))
    assert changed.min(axis=0).tolist() == [20, 10]
    assert changed.max(axis=0).tolist() == [35, 29]
    np.testing.assert_array_equal(drawn[22:34, 16:28], GREY[22:34, 16:28])


@pytest.mark.parametrize("box", [[-50, -50, 200, 200], [5, 5, 5, 5], [59, 39, 60, 40]], ids=str)
def test_boxes_beyond_the_edge_and_empty_ones_are_drawn(box):
    drawn = with_boxes(GREY, np.array([box], np.float32), [0], ["a name that is long"])
    assert drawn.shape == GREY.shape
    assert (drawn != GREY).any()


def test_no_boxes_leave_the_image():
    np.testing.assert_array_equal(with_boxes(GREY, np.zeros((0, 4)), [], []), GREY)


def test_classes_tint_all_but_the_background_and_what_is_none():
    classes = np.zeros((40, 60), np.int32)
    classes[:10], classes[10:20] = 3, 255
    drawn = with_classes(GREY, classes)
    np.testing.assert_array_equal(drawn[10:], GREY[10:])
    assert (drawn[:10] == 64 + COLOURS[3] // 2).all()
    assert COLOURS[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_classes_have_their_names_on_them():
    """Which tell them apart where colours do not."""
    classes = np.zeros((40, 60), np.uint8)
    classes[:16, :30], classes[20:, 30:], classes[:16, 40:] = 1, 2, 255
    drawn = with_names(GREY, classes, ["background", "cat", "dog"])
    for label in (1, 2):
        ground = (drawn == COLOURS[label]).all(axis=-1)
        assert ground[classes == label].mean() > 0.1
    np.testing.assert_array_equal(drawn[:16, 40:], GREY[:16, 40:])


def test_a_caption_is_inside_the_picture():
    drawn = with_caption(GREY, "cat, dog")
    assert (drawn != GREY).any(axis=(0, 1)).all()
    np.testing.assert_array_equal(drawn[20:], GREY[20:])


def test_grey_and_oblong_images_become_rgb_of_one_longer_side():
    assert fitted(np.zeros((10, 20, 1), np.uint8), 40).shape == (20, 40, 3)
    assert fitted(np.zeros((300, 3, 3), np.uint8), 30).shape == (30, 1, 3)


def test_a_table_has_room_for_the_largest_of_each_row_and_column():
    small, wide = np.zeros((10, 10, 3), np.uint8), np.zeros((5, 30, 3), np.uint8)
    sheet = table([[small, wide], [wide, small]])
    assert sheet.shape == (10 + 10 + 3 * 4, 30 + 30 + 3 * 4, 3)
    assert (sheet == 0).all(axis=-1).sum() == 2 * (10 * 10 + 5 * 30)
