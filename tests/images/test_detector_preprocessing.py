"""Images are prepared for detectors as torchvision prepares one alone, and as in a run."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flaxattn import InputError
from flaxattn.data import eval_transform
from flaxattn.weights import DetectorPreprocessing
from tests.images.pictures import encoded, noise, quick
from tests.torch_reference.torchvision_shim import torchvision

GREY = {"mean": (0.4,), "std": (0.2,)}


def reference(pixels, preprocessing):
    """The image on its canvas, and its size, by torchvision."""
    transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(
        preprocessing.min_size, preprocessing.max_size, preprocessing.mean, preprocessing.std
    )
    image = torchvision.transforms.functional.to_tensor(Image.fromarray(pixels))
    listed, _ = transform.eval()([image])
    return listed.tensors[0].permute(1, 2, 0).numpy(), listed.image_sizes[0]


@quick
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([(40, 64), (32, 33), (37, 90)]))
def test_an_image_alone_is_prepared_as_by_torchvision(height, width, sizes):
    if max(height, width) > 30 * min(height, width):
        return  # it would have no pixel along one side, which torch refuses
    pixels = noise(height, width, 3)
    preprocessing = DetectorPreprocessing(*sizes)
    image, size, original_size = preprocessing(Image.fromarray(pixels))
    expected, expected_size = reference(pixels, preprocessing)
    assert image.shape == expected.shape
    assert image.shape[:2] == preprocessing.canvas_of(height, width)
    assert tuple(size) == expected_size
    assert tuple(original_size) == (height, width)
    assert np.abs(image - expected).max() <= 1e-4


def test_the_defaults_are_torchvisions():
    network = torchvision.models.detection.faster_rcnn.FasterRCNN
    with torch.device("meta"):
        transform = network(
            torchvision.models.detection.backbone_utils.mobilenet_backbone(
                backbone_name="mobilenet_v3_large", weights=None, fpn=True
            ),
            num_classes=2,
        ).transform
    own = DetectorPreprocessing()
    assert (own.min_size, own.max_size) == (transform.min_size[0], transform.max_size)
    assert (list(own.mean), list(own.std)) == (transform.image_mean, transform.image_std)
    assert own.multiple == transform.size_divisible
    assert own.input_size == (800, 800, 3)


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (10, 12)], ids=str)
def test_an_image_on_a_runs_canvas_is_that_of_its_evaluation(size):
    preprocessing = DetectorPreprocessing(40, 80, **GREY, canvas=(64, 96))
    objects = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int32)}
    objects |= {"difficult": np.zeros(0, bool), "image_id": 0}
    record = {"image": encoded(noise(*size, 1)[..., 0]), "name": "a", "objects": objects}
    config = {**preprocessing.to_config(), "channels": 1, "max_objects": 1}
    example = eval_transform(config, annotation="objects")(record)
    placed = preprocessing(record["image"])
    for name, array in (("image", 0), ("size", 1), ("original_size", 2)):
        np.testing.assert_array_equal(placed[array], example[name], strict=True)
    assert preprocessing.input_size == (64, 96, 1)


def test_a_larger_multiple_makes_fewer_canvases():
    preprocessing = DetectorPreprocessing(60, 100, multiple=64)
    canvases = {preprocessing.canvas_of(height, 64) for height in range(40, 110)}
    assert canvases == {(64, 64), (64, 128), (128, 64)}


def test_a_config_says_all():
    own = DetectorPreprocessing(320, 640, **GREY, canvas=(640, 320), multiple=64)
    assert DetectorPreprocessing.of(own.to_config()) == own
    assert DetectorPreprocessing.of({}) == DetectorPreprocessing()
    assert DetectorPreprocessing.of({"min_size": [480, 512]}).min_size == 512


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"min_size": "large"}, "cannot be read .* min_size and max_size must be integers"),
        ({"canvas": [64]}, "cannot be read .* canvas two of them"),
        ({"canvas": 64}, "cannot be read .* canvas two of them"),
        ({"canvas": [64, 100]}, r"canvas=\(64, 100\) must be .* both multiples of 32 above 0"),
        ({"multiple": 48}, "multiple=48 must be a multiple of 32, such as 256"),
        ({"multiple": 16}, "multiple=16 is below 32"),
        ({"min_size": 800, "max_size": 640}, "min_size=800 and max_size=640: use sizes above 0"),
        ({"std": [1.0, 0.0, 1.0]}, "those of std above 0"),
        ({"mean": [1.0, 0.0]}, "channels=2 must be 1"),
    ],
)
def test_values_that_cannot_be(config, sentence):
    with pytest.raises(InputError, match=sentence):
        DetectorPreprocessing.of(config)
