import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.images.boxes import flip_boxes, scale_boxes
from tests.images.pictures import quick, seeds

BOXES = np.array([[1, 2, 4, 8], [0, 0, 10, 8]], np.float32)


def test_the_mirror_image_of_a_box():
    assert flip_boxes(BOXES, 10).tolist() == [[6, 2, 9, 8], [0, 0, 10, 8]]
    assert flip_boxes(BOXES, 10).dtype == np.float32


def test_a_box_grows_with_the_image():
    assert scale_boxes(BOXES, (8, 10), (16, 5)).tolist() == [[0.5, 4, 2, 16], [0, 0, 5, 16]]


def test_there_may_be_no_box():
    nothing = np.zeros((0, 4), np.float32)
    for boxes in (flip_boxes(nothing, 10), scale_boxes(nothing, (8, 10), (16, 5))):
        assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)


@quick
@given(seed=seeds, width=st.integers(1, 500))
def test_mirrored_twice_is_itself(seed, width):
    boxes = np.random.default_rng(seed).integers(0, width + 1, (3, 4)).astype(np.float32)
    np.testing.assert_array_equal(flip_boxes(flip_boxes(boxes, width), width), boxes)
