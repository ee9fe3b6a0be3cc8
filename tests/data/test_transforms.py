import functools
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ml_collections import ConfigDict
from PIL import Image

from flaxattn.data import eval_transform, train_transform
from flaxattn.data.transforms import (
    RANDAUGMENT,
    decode,
    horizontal_flip,
    normalise,
    padded_crop,
    rand_augment,
    random_erasing,
    random_resized_crop,
    resize_center_crop,
    resize_shorter_side,
)
from flaxattn.errors import InputError

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


def record(image, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=form, **options)
    return {"image": file.getvalue(), "label": 3, "name": "cats/7.png"}


def twice(transform, image, seed):
    """The answer to a seed, the same the second time, with the image left as it was."""
    before = image.copy()
    first = transform(image, np.random.default_rng(seed))
    second = transform(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)
    return first


# Decoding


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "stored", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"], ids=lambda mode: mode
)
def test_any_kind_of_image_becomes_grey_or_rgb(stored, channels):
    grey = noise(5, 7, 1)[..., 0]
    if stored == "I;16":
        made = record(grey.astype(np.uint16) * 256)
    else:
        image = Image.fromarray(grey).convert(stored)
        file = io.BytesIO()
        image.save(file, format="TIFF" if stored == "CMYK" else "PNG")
        made = {"image": file.getvalue(), "label": 0, "name": "x"}
    pixels = decode(made, channels=channels)
    assert pixels.shape == (5, 7, channels)
    assert pixels.dtype == np.uint8
    expected = np.where(grey < 128, 0, 255) if stored == "1" else grey
    if stored not in ("1", "P"):
        np.testing.assert_allclose(pixels[..., 0], expected, atol=1)


def test_png_is_lossless():
    image = noise(9, 4, 3)
    np.testing.assert_array_equal(decode(record(image), channels=3), image)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "format is none"), (b"no image at all", "format is none")]
)
def test_what_is_no_image_is_named(content, reason):
    with pytest.raises(InputError, match=f"cats/7.png cannot be read as an image .*{reason}"):
        decode({"image": content, "label": 0, "name": "cats/7.png"}, channels=3)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_truncated_image_is_named(form):
    whole = record(noise(64, 64, 3), form)
    half = {**whole, "image": whole["image"][: len(whole["image"]) // 2]}
    with pytest.raises(InputError, match=r"cats/7.png cannot be read as an image .*truncated"):
        decode(half, channels=3)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_are_an_image_or_a_named_error(form, data):
    content = bytearray(record(noise(6, 6, 3), form)["image"])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode({"image": bytes(content), "label": 0, "name": "x.png"}, channels=3)
    except InputError as error:
        assert "x.png" in str(error)  # noqa: PT017
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


# Random transforms


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

    monkeypatch.setattr(
        "flaxattn.data.transforms._OPERATIONS", tuple(spy(name) for name in RANDAUGMENT)
    )
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


# Resizing and normalising


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
def test_resize_center_crop(image, size, margin):
    crop = resize_center_crop(image, resize=size + margin, size=size)
    assert crop.shape == (size, size, image.shape[2])


def test_an_image_of_the_right_size_is_left_alone():
    image = noise(8, 8, 1)
    np.testing.assert_array_equal(resize_center_crop(image, resize=8, size=8), image)


@pytest.mark.parametrize("shape", [(37, 50, 3), (50, 37, 1), (20, 20, 3), (9, 31, 1)])
def test_evaluation_is_torchvisions(shape):
    from tests.torch_reference.torchvision_shim import torchvision

    transforms = torchvision.transforms
    reference = transforms.Compose(
        [
            transforms.Resize(24),
            transforms.CenterCrop(19),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.4, 0.3)[: shape[2]], (0.2, 0.25, 0.3)[: shape[2]]),
        ]
    )
    image = noise(*shape)
    expected = reference(Image.fromarray(image[..., 0] if shape[2] == 1 else image))
    transform = eval_transform(
        {
            "image_size": 19,
            "eval_resize": 24,
            "channels": shape[2],
            "mean": (0.5, 0.4, 0.3)[: shape[2]],
            "std": (0.2, 0.25, 0.3)[: shape[2]],
        }
    )
    ours = transform(record(image[..., 0] if shape[2] == 1 else image))["image"]
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), atol=1e-5)


@quick
@given(image=images())
def test_normalise(image):
    channels = image.shape[2]
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.5, 0.25, 2.0)[:channels]
    result = normalise(image, mean=mean, std=std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (image / 255 - np.array(mean)) / np.array(std), atol=1e-5)


# Transforms from a config


@pytest.mark.parametrize("crop", ["resized", "padded", "center"])
@pytest.mark.parametrize("channels", [1, 3])
@quick
@given(seed=seeds, shape=st.tuples(sides, sides), ops=st.sampled_from([0, 2]))
def test_train_transform_fits_and_is_pure_in_the_seed(crop, channels, seed, shape, ops):
    config = ConfigDict(full_config(channels))
    config.augment.update(crop=crop, flip=True, randaugment_ops=ops, erasing=0.5)
    transform = train_transform(config)
    example = record(noise(*shape, 3, seed))
    first, second = (transform(example, np.random.default_rng(seed)) for _ in range(2))
    assert first["image"].shape == (8, 8, channels)
    assert first["image"].dtype == np.float32
    assert first["label"] == 3
    assert first["label"].dtype == np.int32
    np.testing.assert_array_equal(first["image"], second["image"])
    assert np.abs(first["image"]).max() <= 0.5 / 0.25 + 1e-5


def full_config(channels):
    return {
        "image_size": 8,
        "channels": channels,
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "eval_resize": 10,
        "augment": {
            "crop": "resized",
            "scale": (0.3, 1.0),
            "ratio": (0.75, 4 / 3),
            "padding": 2,
            "flip": False,
            "randaugment_ops": 0,
            "randaugment_magnitude": 9,
            "erasing": 0.0,
        },
    }


def test_every_field_of_the_augmentation_does_something():
    image = record(noise(12, 15, 3))

    def answers(**changes):
        config = full_config(3)
        config["augment"] |= {"crop": "center"} | changes
        transform = train_transform(config)
        return [transform(image, np.random.default_rng(seed))["image"] for seed in range(8)]

    plain = answers()
    assert all((a == plain[0]).all() for a in plain), "nothing is random in this config"
    expected = eval_transform(full_config(3))(image)["image"]
    np.testing.assert_array_equal(plain[0], expected)
    changes = [
        {"crop": "resized"},
        {"crop": "padded"},
        {"flip": True},
        {"randaugment_ops": 2},
        {"erasing": 1.0},
    ]
    for change in changes:
        assert any((a != b).any() for a, b in zip(answers(**change), plain, strict=True)), change
    pairs = [
        ({"crop": "resized"}, {"scale": (0.9, 1.0)}),
        ({"crop": "resized"}, {"ratio": (1.0, 1.0)}),
        ({"crop": "padded"}, {"padding": 0}),
        ({"randaugment_ops": 2}, {"randaugment_magnitude": 29}),
        ({"randaugment_ops": 2}, {"randaugment_ops": 3}),
    ]
    for base, change in pairs:
        before, after = answers(**base), answers(**base | change)
        assert any((a != b).any() for a, b in zip(before, after, strict=True)), change


def test_erased_pixels_have_the_mean_colour():
    config = full_config(1)
    config["augment"] |= {"crop": "center", "erasing": 1.0}
    white = record(np.full((10, 10), 255, np.uint8))
    image = train_transform(config)(white, np.random.default_rng(1))["image"]
    assert set(np.unique(image)) == {0.0, 2.0}


def test_an_unknown_crop_gets_the_known_ones():
    config = full_config(3)
    config["augment"]["crop"] = "pad"
    with pytest.raises(InputError, match="unknown crop 'pad': did you mean padded"):
        train_transform(config)


@pytest.mark.parametrize("build", [train_transform, eval_transform])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"channels": 4}, "channels=4 is neither 1"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) and .* do not fit channels=3"),
        ({"std": (0.5, 0.5, 0)}, "those of std above 0"),
        ({"eval_resize": 7}, "image_size=8 cannot be cut out of .* eval_resize=7"),
        ({"image_size": 0}, "both above 0"),
    ],
)
def test_values_that_do_not_go_together_are_a_sentence(build, change, sentence):
    with pytest.raises(InputError, match=sentence):
        build(full_config(3) | change)


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
