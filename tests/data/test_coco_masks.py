import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coding

from flaxattn.data.coco_masks import covered
from flaxattn.errors import InputError

# pycocotools 2.0.11 with NumPy 2, when it decodes run lengths.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PIXELS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


def run_lengths(pixels):
    """Column by column, beginning with pixels that are not covered."""
    groups = [(value, len([*same])) for value, same in itertools.groupby(pixels.T.ravel().tolist())]
    lengths = [length for _, length in groups]
    return [0, *lengths] if groups[0][0] else lengths


@given(PIXELS)
def test_run_lengths_are_the_pixels_compressed_or_not(pixels):
    size = [*pixels.shape]
    compressed = coding.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
    for counts in (run_lengths(pixels), compressed):
        found = covered({"size": size, "counts": counts}, pixels.shape, name="it")
        assert found.dtype == bool
        np.testing.assert_array_equal(found, pixels)


@given(st.data())
def test_polygons_cover_what_any_of_them_covers(data):
    """Rectangles between pixels cover those inside; what is outside the image is cut off."""
    height, width = data.draw(st.tuples(*[st.integers(1, 9)] * 2))
    expected = np.zeros((height, width), bool)
    polygons = []
    for _ in range(data.draw(st.integers(1, 3))):
        left, right = sorted(data.draw(st.tuples(*[st.integers(0, width + 1)] * 2)))
        top, bottom = sorted(data.draw(st.tuples(*[st.integers(0, height + 1)] * 2)))
        expected[top:bottom, left:right] = True
        polygons.append([left, top, right, top, right, bottom, left, bottom])
    np.testing.assert_array_equal(covered(polygons, (height, width), name="it"), expected)


LEGAL = [0, 0, 2, 0, 2, 2]
SHORT, WHOLE, LONG = (
    coding.encode(np.ones((height, 5), np.uint8, order="F"))["counts"].decode()
    for height in (3, 4, 5)
)


@pytest.mark.parametrize(
    "segmentation",
    [
        *(None, [], "", {}, 3, [LEGAL, []], [LEGAL[:4]], [[*LEGAL, 1]], [LEGAL, 3], LEGAL),
        *([[*LEGAL[:5], other]] for other in ("2", None, float("nan"), float("inf"), 1e12)),
        {"size": [5, 4], "counts": WHOLE},
        {"size": [4, 5]},
        *({"size": [4, 5], "counts": c} for c in ([19], [21], [], [30, -10], [None], 20, None)),
        *({"size": [4, 5], "counts": c} for c in (SHORT, LONG, "", "~~", "\u00e9")),
    ],
    ids=str,
)
def test_what_is_wrong_is_a_sentence(segmentation):
    with pytest.raises(InputError, match=r"^annotation 7 is wrong: for an image of 4x5 pixels"):
        covered(segmentation, (4, 5), name="annotation 7")
