import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flaxattn.data import eval_batches, eval_transform, train_batches, train_transform
from flaxattn.data.voc import VocSource
from flaxattn.errors import InputError
from tests.images.pictures import encoded, noise, quick, seeds, sides

CONFIG = {
    "channels": 3,
    "mean": (0.5, 0.4, 0.3),
    "std": (0.25, 0.25, 0.5),
    "image_size": 16,
    "eval_resize": 12,
    "canvas": (32, 32),
    "augment": {"scale": (0.5, 2.0), "flip": True},
}


def evaluated(record, **fields):
    return eval_transform({**CONFIG, **fields}, annotation="masks")(record)


def trained(record, seed=0, **fields):
    transform = train_transform({**CONFIG, **fields}, annotation="masks")
    return transform(record, np.random.default_rng(seed))


def record(height, width, *, mask=None):
    if mask is None:
        mask = np.random.default_rng(1).integers(0, 5, (height, width)).astype(np.uint8)
    return {"image": encoded(noise(height, width, 3)), "name": "VOC2012/a.jpg", "mask": mask}


def halves(height, width):
    """Black of class 1 on the left, white of class 2 on the right."""
    mask = np.ones((height, width), np.uint8)
    mask[:, width // 2 :] = 2
    pixels = np.repeat(np.where(mask == 2, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    return record(height, width, mask=mask) | {"image": encoded(pixels)}


def test_unresized_the_mask_is_the_data_sets_own():
    given = record(20, 25)
    example = evaluated(given, eval_resize=0)
    assert (example["image"].shape, example["image"].dtype) == ((32, 32, 3), np.float32)
    assert (example["label"].shape, example["label"].dtype) == ((32, 32), np.int32)
    np.testing.assert_array_equal(example["label"][:20, :25], given["mask"])
    expected = (noise(20, 25, 3) / 255 - CONFIG["mean"]) / CONFIG["std"]
    np.testing.assert_allclose(example["image"][:20, :25], expected, atol=1e-5)
    for rest in (np.s_[20:], np.s_[:, 25:]):
        assert np.unique(example["label"][rest]).tolist() == [255]
        assert not example["image"][rest].any()


@pytest.mark.parametrize(("height", "width"), [(20, 25), (25, 20), (6, 9), (12, 12)])
def test_the_shorter_side_is_resized_as_by_torchvision(height, width):
    from tests.torch_reference.torchvision_shim import torchvision

    given = record(height, width)
    resize = torchvision.transforms.functional.resize
    modes = torchvision.transforms.InterpolationMode
    image = resize(Image.fromarray(noise(height, width, 3)), 12)
    mask = resize(Image.fromarray(given["mask"]), 12, interpolation=modes.NEAREST)
    example = evaluated(given)
    rows, columns = image.height, image.width
    np.testing.assert_array_equal(example["label"][:rows, :columns], np.asarray(mask))
    expected = (np.asarray(image) / 255 - CONFIG["mean"]) / CONFIG["std"]
    np.testing.assert_allclose(example["image"][:rows, :columns], expected, atol=1e-5)


@quick
@given(seed=seeds, height=sides, width=sides)
def test_training_has_one_shape_and_is_pure_in_the_seed(seed, height, width):
    first, second = (trained(record(height, width), seed) for _ in range(2))
    assert (first["image"].shape, first["image"].dtype) == ((16, 16, 3), np.float32)
    assert (first["label"].shape, first["label"].dtype) == ((16, 16), np.int32)
    assert set(np.unique(first["label"])) <= {0, 1, 2, 3, 4, 255}
    outside = first["label"] == 255
    assert not first["image"][outside].any()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@quick
@given(seed=seeds, height=st.integers(8, 24), width=st.integers(8, 24))
def test_the_mask_goes_with_the_image(seed, height, width):
    """But for the blurred edge, black is of class 1 and white of class 2."""
    example = trained(halves(height, width), seed, mean=(0.5,) * 3, std=(0.5,) * 3)
    brightness, label = example["image"][..., 0], example["label"]
    assert (label[np.isclose(brightness, -1)] == 1).all()
    assert (label[np.isclose(brightness, 1)] == 2).all()


def test_images_are_mirrored_and_scaled():
    def widths(**augment):
        given = halves(8, 8)
        found = [
            trained(given, seed, eval_resize=0, augment={"scale": (1, 1), "flip": False} | augment)
            for seed in range(40)
        ]
        return [((e["label"] != 255).sum(), e["label"][0, 0]) for e in found]

    assert set(widths()) == {(64, 1)}
    assert set(widths(flip=True)) == {(64, 1), (64, 2)}
    sizes = {size for size, _ in widths(scale=(0.5, 2.0))}
    assert min(sizes) in (16, 25)
    assert max(sizes) in (225, 256)
    assert len(sizes) > 8


def test_the_window_moves():
    corners = {trained(record(64, 64), seed)["image"].tobytes() for seed in range(5)}
    assert len(corners) == 5


def test_a_mask_of_another_size_is_a_sentence():
    given = record(20, 25, mask=np.zeros((20, 24), np.uint8))
    for transform in (trained, evaluated):
        with pytest.raises(InputError, match=r"a\.jpg has 20x25 pixels .* and its mask 20x24: gi"):
            transform(given)


def test_an_image_that_is_larger_than_the_canvas_is_a_sentence():
    with pytest.raises(InputError, match=r"a\.jpg has 33x20 pixels .* more than canvas=\(32, 32\)"):
        evaluated(record(33, 20), eval_resize=0)


@pytest.mark.parametrize(
    ("transform", "fields", "words"),
    [
        (train_transform, {"image_size": 0}, "image_size=0 is below 1"),
        (train_transform, {"augment": {"scale": (2, 1), "flip": True}}, r"scale=\(2, 1\) must be"),
        (train_transform, {"augment": {"scale": (0, 1), "flip": True}}, r"scale=\(0, 1\) must be"),
        (eval_transform, {"canvas": (0, 3)}, r"canvas=\(0, 3\) must be a height and a width"),
        (eval_transform, {"eval_resize": -1}, "eval_resize=-1 is below 0"),
        (train_transform, {"eval_resize": -1}, "eval_resize=-1 is below 0"),
        (eval_transform, {"channels": 4}, "channels=4 must be 1"),
    ],
)
def test_values_that_do_not_go_together_are_refused(transform, fields, words):
    with pytest.raises(InputError, match=words):
        transform({**CONFIG, **fields}, annotation="masks")


def test_scenes_go_through_the_pipeline(scenes_root):
    config = {**CONFIG, "image_size": 64, "eval_resize": 0, "canvas": (128, 128)}
    train, val = (VocSource(scenes_root, split, annotation="masks") for split in ("train", "val"))
    transforms = [make(config, annotation="masks") for make in (train_transform, eval_transform)]
    batches = train_batches(train, transforms[0], batch_size=4, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (4, 64, 64, 3)
    assert batch["label"].shape == (4, 64, 64)
    evaluation = list(eval_batches(val, transforms[1], batch_size=4))
    counted = sum((each["label"] != 255)[each["mask"] > 0].sum() for each in evaluation)
    assert counted == sum((val[index]["mask"] != 255).sum() for index in range(len(val)))
