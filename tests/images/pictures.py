"""Pictures for tests: drawn by hypothesis, of noise, encoded; and twice through a transform."""

import io

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

sides = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=30, deadline=None)


@st.composite
def images(draw, min_side=1):
    side = st.integers(min_side, 24)
    shape = (draw(side), draw(side), draw(st.sampled_from([1, 3])))
    return draw(arrays(np.uint8, shape))


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image, form="PNG", **options):
    """The bytes of a file of this image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=form, **options)
    return file.getvalue()


def twice(transform, image, seed):
    """The answer to a seed, the same the second time, with the image left as it was."""
    before = image.copy()
    first = transform(image, np.random.default_rng(seed))
    second = transform(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)
    return first
