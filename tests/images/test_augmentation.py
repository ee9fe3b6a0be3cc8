import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flaxattn.errors import InputError
from flaxattn.images.augmentation import RANDAUGMENT, rand_augment, random_erasing
from tests.images.pictures import images, noise, quick, seeds, twice


@quick
@given(image=images(), seed=seeds, probability=st.floats(0, 1))
def test_random_erasing_fills_one_rectangle(image, seed, probability):
    image = image.astype(np.float32) + 1
    erased = twice(functools.partial(random_erasing, probability=probability), image, seed)
    assert erased.dtype == image.dtype
    assert erased.shape == image.shape
    rows, columns = np.nonzero((erased != image).any(axis=2))
    if rows.size:
        rectangle = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert np.all(rectangle == 0)
        assert rectangle.shape[0] * rectangle.shape[1] == rows.size


def test_random_erasing_keeps_its_probability_and_its_area():
    image = np.ones((60, 60, 1), np.float32)
    rng = np.random.default_rng(0)
    shares = [1 - random_erasing(image, rng, probability=0.3).mean() for _ in range(1000)]
    hit = [share for share in shares if share]
    assert 250 < len(hit) < 350
    assert 0.018 < min(hit) < 0.03
    assert 0.3 < max(hit) < 0.345


# RandAugment


@quick
@given(image=images(), seed=seeds, num_ops=st.integers(0, 4), magnitude=st.floats(0, 30))
def test_rand_augment(image, seed, num_ops, magnitude):
    augment = functools.partial(rand_augment, num_ops=num_ops, magnitude=magnitude)
    augmented = twice(augment, image, seed)
    assert augmented.shape == image.shape
    assert augmented.dtype == np.uint8
    if num_ops == 0:
        np.testing.assert_array_equal(augmented, image)


@pytest.mark.parametrize("magnitude", [-1, 31])
def test_a_magnitude_out_of_range_is_a_sentence(magnitude):
    with pytest.raises(InputError, match=f"magnitude of {magnitude} is not within 0 to 30"):
        rand_augment(noise(4, 4, 1), np.random.default_rng(0), magnitude=magnitude)


def test_there_are_the_fourteen_operations_and_all_are_drawn(monkeypatch):
    assert len(RANDAUGMENT) == 14
    drawn = set()

    def spy(name):
        def operation(image, strength):
            drawn.add((name, round(strength, 6)))
            return image

        return operation

    for name in RANDAUGMENT:
        monkeypatch.setitem(RANDAUGMENT, name, spy(name))
    rng = np.random.default_rng(0)
    for _ in range(150):
        rand_augment(noise(4, 4, 1), rng, num_ops=2, magnitude=12)
    assert drawn == {(name, sign * 0.4) for name in RANDAUGMENT for sign in (1, -1)}


SIGNED = set(RANDAUGMENT) - {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RANDAUGMENT)
def test_operations_are_torchvisions(name, channels):
    from tests.torch_reference.torchvision_shim import torchvision

    autoaugment = torchvision.transforms.autoaugment
    reference = autoaugment.RandAugment()
    image = noise(13, 17, channels)
    image = Image.fromarray(image[..., 0] if channels == 1 else image)
    table = reference._augmentation_space(31, (13, 17))
    assert set(table) == set(RANDAUGMENT)
    magnitudes, signed = table[name]
    assert signed == (name in SIGNED)
    for step in (0, 7, 15, 30):
        for sign in (1, -1) if signed else (1,):
            value = float(magnitudes[step]) * sign if magnitudes.ndim else 0.0
            expected = autoaugment._apply_op(
                image, name, value, torchvision.transforms.InterpolationMode.BILINEAR, None
            )
            ours = RANDAUGMENT[name](image, sign * step / 30)
            # torchvision keeps its tables in float32, which may cost a rounding.
            difference = np.abs(np.asarray(ours, int) - np.asarray(expected, int))
            assert difference.max() <= (1 if signed else 0), (step, sign)


@pytest.mark.parametrize("name", sorted(SIGNED - {"Color"}))
def test_a_strength_of_either_sign_changes_the_image_and_differs(name):
    image = Image.fromarray(noise(13, 17, 1)[..., 0])
    strong, weak = RANDAUGMENT[name](image, 0.5), RANDAUGMENT[name](image, -0.5)
    assert strong.tobytes() != image.tobytes()
    assert strong.tobytes() != weak.tobytes()
