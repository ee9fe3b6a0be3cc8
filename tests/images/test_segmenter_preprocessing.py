"""Images are prepared for segmenters as by torchvision's transform, and as in a run."""

import numpy as np
import pytest
from PIL import Image

from flaxattn import InputError
from flaxattn.data import eval_transform
from flaxattn.weights import SegmenterPreprocessing
from tests.images.pictures import encoded, noise
from tests.torch_reference.torchvision_shim import torchvision

GREY = {"mean": (0.4,), "std": (0.2,)}
SIZES = [(40, 61), (61, 40), (33, 33), (20, 50)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_torchvisions(size):
    picture = Image.fromarray(noise(*size, 3))
    transform = torchvision.transforms._presets.SemanticSegmentation(resize_size=33)
    expected = transform(picture).permute(1, 2, 0).numpy()
    image, own_size, original_size = SegmenterPreprocessing(33)(picture)
    assert image.shape == expected.shape == (*own_size, 3)
    assert tuple(original_size) == size
    assert np.abs(image - expected).max() <= 1e-5


def test_the_defaults_are_torchvisions():
    weights = torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT.transforms()
    own = SegmenterPreprocessing()
    assert [own.shorter_side] == weights.resize_size
    assert (list(own.mean), list(own.std)) == (weights.mean, weights.std)


@pytest.mark.parametrize("shorter_side", [0, 21])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_on_a_runs_canvas_is_that_of_its_evaluation(size, shorter_side):
    preprocessing = SegmenterPreprocessing(shorter_side, **GREY, canvas=(64, 80))
    record = {
        "image": encoded(noise(*size, 1)[..., 0]),
        "name": "a",
        "mask": np.zeros(size, np.uint8),
    }
    config = {**preprocessing.to_config(), "channels": 1}
    example = eval_transform(config, annotation="masks")(record)
    placed = preprocessing(record["image"])
    np.testing.assert_array_equal(placed.image, example["image"], strict=True)
    assert (example["label"] < 255).sum() == np.prod(placed.size)


def test_an_image_larger_than_its_canvas_is_shrunk():
    preprocessing = SegmenterPreprocessing(0, canvas=(64, 80))
    image, size, original_size = preprocessing(Image.fromarray(noise(100, 60, 3)))
    assert image.shape == preprocessing.input_size == (64, 80, 3)
    assert (tuple(size), tuple(original_size)) == ((64, 38), (100, 60))
    assert image[:, 37].any()
    assert not image[:, 38:].any()


def test_a_multiple_pads():
    preprocessing = SegmenterPreprocessing(0, multiple=32)
    image, size, _ = preprocessing(Image.fromarray(noise(40, 60, 3)))
    assert (image.shape, tuple(size)) == ((64, 64, 3), (40, 60))
    assert not image[40:].any()


def test_a_config_says_all():
    own = SegmenterPreprocessing(0, **GREY, canvas=(64, 80), multiple=16)
    assert SegmenterPreprocessing.of(own.to_config()) == own
    assert SegmenterPreprocessing.of({}) == SegmenterPreprocessing()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"eval_resize": "large"}, "cannot be read .* eval_resize must be an integer"),
        ({"eval_resize": -1}, "shorter_side=-1 is below 0"),
        ({"canvas": [64]}, "cannot be read .* canvas two of them"),
        ({"canvas": [0, 64]}, r"canvas=\(0, 64\) must be a height and a width, both above 0"),
        ({"multiple": -1}, "multiple=-1 is below 1"),
        ({"std": [1.0, 0.0, 1.0]}, "those of std above 0"),
    ],
)
def test_values_that_cannot_be(config, sentence):
    with pytest.raises(InputError, match=sentence):
        SegmenterPreprocessing.of(config)
