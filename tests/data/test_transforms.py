import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from flaxattn.data import eval_transform, train_transform
from flaxattn.errors import InputError
from tests.images.pictures import encoded, noise, quick, seeds, sides


def record(image):
    return {"image": encoded(image), "label": 3, "name": "cats/7.png"}


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
            "crop_mode": "center",
            "channels": shape[2],
            "mean": (0.5, 0.4, 0.3)[: shape[2]],
            "std": (0.2, 0.25, 0.3)[: shape[2]],
        }
    )
    ours = transform(record(image[..., 0] if shape[2] == 1 else image))["image"]
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), atol=1e-5)


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
        "crop_mode": "center",
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


@pytest.mark.parametrize("crop", ["padded", "center"])
def test_nothing_is_cut_off_a_squashed_image(crop):
    """An oblong image whose first and last columns are white."""
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :5] = image[:, -5:] = 255
    config = ConfigDict(full_config(3) | {"eval_resize": 8, "crop_mode": "squash"})
    config.augment.update(crop=crop, padding=0, flip=False)
    given = record(image)
    for example in (
        train_transform(config)(given, np.random.default_rng(0)),
        eval_transform(config)(given),
    ):
        assert example["image"][:, [0, -1]].min() > 1
        assert example["image"][:, 3:5].max() == -2


@pytest.mark.parametrize("build", [train_transform, eval_transform])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"channels": 4}, "channels=4 must be 1"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) and .* do not fit 3 channels"),
        ({"std": (0.5, 0.5, 0)}, "those of std above 0"),
        ({"eval_resize": 7}, "image_size=8 cannot be cut out of .* eval_resize=7"),
        ({"image_size": 0}, "both above 0"),
        ({"crop_mode": "squish"}, "unknown crop_mode 'squish': did you mean squash"),
    ],
)
def test_values_that_do_not_go_together_are_a_sentence(build, change, sentence):
    with pytest.raises(InputError, match=sentence):
        build(full_config(3) | change)


@pytest.mark.parametrize("build", [train_transform, eval_transform])
def test_a_broken_image_has_the_name_of_its_record(build):
    transform = build(full_config(3))
    generator = [np.random.default_rng(0)] if build is train_transform else []
    with pytest.raises(InputError, match=r"^cats/7.png cannot be read as an image"):
        transform({"image": b"", "label": 3, "name": "cats/7.png"}, *generator)
