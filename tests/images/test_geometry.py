import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flaxattn.errors import InputError
from flaxattn.images.geometry import (
    center_crop,
    horizontal_flip,
    interpolate,
    padded_crop,
    random_resized_crop,
    resize,
    resize_shorter_side,
    squash,
)
from tests.images.pictures import images, noise, quick, seeds, sides, twice


@quick
@given(image=images(), seed=seeds, size=sides)
def test_random_resized_crop(image, seed, size):
    crop = twice(functools.partial(random_resized_crop, size=size), image, seed)
    assert crop.shape == (size, size, image.shape[2])
    assert crop.dtype == np.uint8
    assert image.min() <= crop.min() <= crop.max() <= image.max()


def test_a_resized_crop_has_the_area_and_the_ratio_asked_for():
    height, width = 80, 120
    image = np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width)), axis=2)
    image = np.concatenate([image, image[..., :1]], axis=2).astype(np.uint8)
    areas, ratios = [], []
    rng = np.random.default_rng(0)
    for _ in range(200):
        crop = random_resized_crop(image, rng, size=200, scale=(0.2, 0.6), ratio=(0.5, 2))
        h, w = (int(np.ptp(crop[..., axis])) + 1 for axis in (0, 1))
        areas.append(h * w / (height * width))
        ratios.append(w / h)
    assert 0.19 < min(areas) < 0.25
    assert 0.5 < max(areas) < 0.62
    assert 0.48 < min(ratios) < 0.6
    assert 1.6 < max(ratios) < 2.1


def test_where_no_crop_fits_the_central_part_is_taken():
    image = noise(4, 40, 1)
    crop = random_resized_crop(image, np.random.default_rng(0), size=4, scale=(1, 1), ratio=(1, 1))
    np.testing.assert_array_equal(crop, image[:, 18:22])


@quick
@given(image=images(), seed=seeds, padding=st.integers(0, 5), data=st.data())
def test_padded_crop_is_a_window_of_the_padded_image(image, seed, padding, data):
    size = data.draw(st.integers(1, min(image.shape[:2]) + 2 * padding))
    window = twice(functools.partial(padded_crop, size=size, padding=padding), image, seed)
    assert window.shape == (size, size, image.shape[2])
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window.shape)
    assert (windows == window).all(axis=(3, 4, 5)).any()


def test_padded_crop_reaches_every_window():
    image = np.full((2, 2, 1), 255, np.uint8)
    rng = np.random.default_rng(0)
    seen = {padded_crop(image, rng, size=2, padding=1).tobytes() for _ in range(200)}
    assert len(seen) == 9


def test_a_window_larger_than_the_padded_image_is_a_sentence():
    with pytest.raises(InputError, match=r"no window of 8x8 .* 5x9 padded by 1: .* at least 2"):
        padded_crop(noise(5, 9, 1), np.random.default_rng(0), size=8, padding=1)
    assert padded_crop(noise(5, 9, 1), np.random.default_rng(0), size=8, padding=2).shape[0] == 8


@quick
@given(image=images(), seed=seeds)
def test_horizontal_flip(image, seed):
    flipped = twice(functools.partial(horizontal_flip, probability=1), image, seed)
    np.testing.assert_array_equal(flipped, np.flip(image, axis=1))
    np.testing.assert_array_equal(
        horizontal_flip(image, np.random.default_rng(seed), probability=0), image
    )


def test_half_of_the_images_are_flipped():
    image = np.array([[[0], [1]]], np.uint8)
    rng = np.random.default_rng(0)
    flips = sum(int(horizontal_flip(image, rng)[0, 0, 0]) for _ in range(1000))
    assert 440 < flips < 560


def test_log_uniform_ratios_are_symmetric():
    """A wide crop is as likely as a tall one; a uniform draw would favour wide ones."""
    rng = np.random.default_rng(0)
    coordinates = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=2)
    image = np.concatenate([coordinates, coordinates[..., :1]], axis=2).astype(np.uint8)
    logs = []
    for _ in range(400):
        crop = random_resized_crop(image, rng, size=100, scale=(0.1, 0.3), ratio=(1 / 3, 3))
        w, h = (int(np.ptp(crop[..., axis])) + 1 for axis in (0, 1))
        logs.append(math.log(w / h))
    assert abs(np.mean(logs)) < 0.1


@quick
@given(image=images(), size=sides)
def test_the_shorter_side_is_resized(image, size):
    resized = resize_shorter_side(image, size=size)
    height, width = image.shape[:2]
    assert min(resized.shape[:2]) == size
    assert max(resized.shape[:2]) == int(size * max(height, width) / min(height, width))
    assert resized.dtype == np.uint8


@quick
@given(image=images(), size=sides, margin=st.integers(0, 8))
def test_center_crop(image, size, margin):
    for resized in (resize_shorter_side(image, size=size + margin), squash(image, size=size)):
        crop = center_crop(resized, size, size)
        assert crop.shape == (size, size, image.shape[2])


def test_an_image_of_the_right_size_is_left_alone():
    image = noise(8, 8, 1)
    resized = center_crop(resize_shorter_side(image, size=8), 8, 8)
    np.testing.assert_array_equal(resized, image)
    np.testing.assert_array_equal(squash(image, size=8), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
def test_resizing_is_pillows(name, channels):
    image = noise(9, 14, channels)
    resized = resize(image, 21, 5, interpolation=name)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    expected = np.asarray(picture.resize((5, 21), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(resized, expected.reshape(21, 5, channels))


def test_the_centre_of_a_small_image_is_filled_up():
    image = noise(2, 7, 3)
    crop = center_crop(image, 5, 3, fill=(1, 2, 3))
    np.testing.assert_array_equal(crop[1:3], image[:, 2:5])
    np.testing.assert_array_equal(crop[[0, 3, 4]], np.broadcast_to([1, 2, 3], (3, 3, 3)))


@pytest.mark.parametrize(
    ("old", "new"),
    [((37, 50), (80, 101)), ((50, 37), (20, 15)), ((1, 5), (3, 9)), ((7, 7), (7, 3))],
)
def test_interpolation_is_torchs(old, new):
    """Without antialiasing, where it enlarges and where it does not."""
    import torch

    image = np.random.default_rng(0).standard_normal((*old, 3), np.float32)
    before = image.copy()
    ours = interpolate(image, *new)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(planes, size=new, mode="bilinear")[0]
    assert (ours.shape, ours.dtype) == ((*new, 3), np.float32)
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), atol=2e-6)
    np.testing.assert_array_equal(image, before)


@quick
@given(image=images())
def test_interpolation_to_its_own_size_changes_nothing(image):
    image = image.astype(np.float32)
    np.testing.assert_array_equal(interpolate(image, *image.shape[:2]), image)
