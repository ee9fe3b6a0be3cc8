"""Images are prepared as timm prepares them, bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from flaxattn import InputError
from flaxattn.images.preprocessing import normalise
from flaxattn.weights import Preprocessing, class_names
from tests.images.pictures import images, noise, quick
from tests.torch_reference.torchvision_shim import timm, torchvision

CONFIG = {
    "input_size": [3, 65, 49],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "crop_pct": 0.95,
    "crop_mode": "squash",
    "interpolation": "bicubic",
    "num_classes": 1000,
}


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(301, 223), (97, 240), (224, 224), (31, 17)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    "crop", [(64, 64, 0.875), (65, 49, 0.95), (47, 47, 1.0), (48, 48, 1.2)], ids=str
)
def test_it_is_timms(size, interpolation, crop_mode, crop):
    height, width, crop_pct = crop
    image = picture(*size)
    fields = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    transform = timm.data.create_transform((3, height, width), **fields)
    expected = transform(image).numpy().transpose(1, 2, 0)
    prepared = Preprocessing((height, width, 3), **fields)(image)
    np.testing.assert_array_equal(prepared, expected, strict=True)


def test_the_default_is_torchvisions():
    image = picture(301, 223)
    transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms(antialias=True)
    prepared = Preprocessing()(image)
    np.testing.assert_allclose(prepared, transform(image).numpy().transpose(1, 2, 0), atol=1e-6)
    assert Preprocessing.of({}) == Preprocessing()


def test_a_config_says_all():
    read = Preprocessing.of(CONFIG)
    expected = ((65, 49, 3), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.95, "squash", "bicubic")
    assert read == expected
    assert Preprocessing.of(read.to_config()) == read


def test_a_config_leaves_to_timms_defaults_what_it_does_not_say():
    resolved = timm.data.resolve_data_config({}, pretrained_cfg={"num_classes": 1000})
    ours = Preprocessing.of({"num_classes": 1000}).to_config()
    assert ours == resolved


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_becomes_rgb(mode):
    image = picture(40, 30, mode)
    preprocessing = Preprocessing((24, 24, 3))
    np.testing.assert_array_equal(preprocessing(image), preprocessing(image.convert("RGB")))


def test_a_file_is_as_its_image(tmp_path):
    image = picture(40, 30)
    image.save(tmp_path / "x.png")
    preprocessing = Preprocessing((24, 24, 3))
    np.testing.assert_array_equal(preprocessing(tmp_path / "x.png"), preprocessing(image))


def test_grey():
    prepared = Preprocessing((24, 24, 1), (0.5,), (0.5,), crop_mode="border")(picture(40, 30))
    assert prepared.shape == (24, 24, 1)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("crop_mode", "centre", "unknown crop_mode 'centre': did you mean center"),
        ("interpolation", "bicubical", "unknown interpolation 'bicubical': did you mean bicubic"),
        ("input_size", [4, 224, 224], r"use C=1 \(grey\) or 3"),
        ("input_size", [224, 224], "cannot be read"),
        ("input_size", 224, "must be the integers"),
        ("input_size", [3, float("inf"), 224], "cannot be read"),
        ("input_size", [3, 0, 224], "above 0"),
        ("mean", [0.5, float("nan"), 0.5], "must be a sequence of finite numbers"),
        ("std", [float("inf"), 0.5, 0.5], "must be a sequence of finite numbers"),
        ("mean", [0.5], "do not fit 3 channels"),
        ("std", [0.5, 0, 0.5], "do not fit 3 channels"),
        ("mean", "black", "cannot be read"),
        ("crop_pct", -1, "must be above 0"),
        ("crop_pct", float("nan"), "crop_pct=nan must be a finite number"),
        ("crop_pct", float("inf"), "crop_pct=inf must be a finite number"),
    ],
)
def test_a_config_that_cannot_be(field, value, sentence):
    with pytest.raises(InputError, match=sentence):
        Preprocessing.of(CONFIG | {field: value})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"std": (math.nan,) * 3},
            r"Preprocessing\.std=\(nan, .* must be a sequence of fin",
        ),
        ({"mean": ("a",)}, r"mean=\('a',\) must be"),
        ({"input_size": (24, 24)}, r"input_size=\(24, 24\) must be \(an integer, an integer, an"),
        ({"crop_mode": None}, "crop_mode=None must be a string"),
        ({"crop_mode": "border"}, "an image of 1000x1 would become 256x0: use a size of 1x1"),
        ({"crop_pct": 1e-4}, "an image of 1000x1 would become 2240000000x2240000: use a size of"),
    ],
)
def test_fields_that_cannot_be(fields, sentence):
    thin = Image.fromarray(np.zeros((1000, 1, 3), np.uint8))
    with pytest.raises(InputError, match=sentence):
        Preprocessing(**fields)(thin)


def test_a_config_is_read_as_it_lies_on_the_hub():
    """Most of timm's config.json stands one level down; what stands above wins."""
    nested = {"architecture": "resnet18", "crop_pct": 0.9, "pretrained_cfg": CONFIG}
    assert Preprocessing.of(nested) == Preprocessing.of(CONFIG | {"crop_pct": 0.9})
    assert Preprocessing.of(nested) != Preprocessing.of({"crop_pct": 0.9})
    assert class_names({"pretrained_cfg": {"label_names": ["n01"]}}) == ("n01",)
    with pytest.raises(InputError, match="pretrained_cfg=3 must be a mapping"):
        Preprocessing.of({"pretrained_cfg": 3})


@quick
@given(image=images())
def test_normalise(image):
    channels = image.shape[2]
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.5, 0.25, 2.0)[:channels]
    result = normalise(image, mean=mean, std=std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (image / 255 - np.array(mean)) / np.array(std), atol=1e-5)


def test_training_rounds_otherwise_than_timm():
    """The same crop, but for the last bits: where these became equal, one function would do."""
    image, mean, std = noise(32, 32, 3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    trained = normalise(image, mean=mean, std=std)
    prepared = Preprocessing((32, 32, 3), mean, std, crop_pct=1.0)(Image.fromarray(image))
    np.testing.assert_allclose(trained, prepared, rtol=0, atol=1e-6)
    assert (trained != prepared).any()


def test_the_classes_names():
    names = {"label_names": ["n01", "n02"]}
    assert class_names({}) is None
    assert class_names(names) == ("n01", "n02")
    assert class_names(names | {"label_descriptions": {"n02": "a dog"}}) == ("n01", "a dog")
    wrong = [{"label_names": listed} for listed in (3, [[]], "cat")]
    for config in (*wrong, names | {"label_descriptions": 3}):
        with pytest.raises(InputError, match=r"label_names=.* list of names .*label_desc.* a map"):
            class_names(config)
