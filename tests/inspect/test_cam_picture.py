"""What is computed of images for a picture, and the picture."""

import jax
import matplotlib
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from flaxattn import InputError
from flaxattn.inspect import overlay
from flaxattn.inspect.cam_picture import last_of_stages, write_picture
from flaxattn.inspect.explanation import Explanation, explain
from flaxattn.layers.initialise import initialise
from flaxattn.models import ResNet

MODEL = ResNet((1, 1), width=4, num_classes=3, attention={"name": "cbam", "reduction": 4})
NAMES = ("cat", "dog", "newt")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
    return initialise(MODEL, jax.random.key(0), images.shape)


def test_each_image_has_its_likeliest_classes_and_its_gates(images, variables):
    found = explain(MODEL, variables, images, top=2, names=NAMES)
    probabilities = jax.nn.softmax(jax.jit(MODEL.apply)(variables, images))
    for one, likely in zip(found, np.asarray(probabilities), strict=True):
        best = np.argsort(-likely)[:2]
        assert list(one.heats) == [f"{NAMES[label]} ({likely[label]:.2f})" for label in best]
        assert {heat.shape for heat in one.heats.values()} == {(16, 24)}
        shapes = {name: gate.shape for name, gate in one.gates.items()}
        assert shapes == {"layer1_0/cbam/channel": (16,), "layer2_0/cbam/channel": (32,)}


def test_classes_by_name_and_by_number(images, variables):
    (one, _) = explain(MODEL, variables, images, classes=("newt", "0"), names=NAMES, several=True)
    assert [title.partition(" ")[0] for title in one.heats] == ["newt", "cat"]
    (one, _) = explain(MODEL, variables, images, method="eigen_cam")
    assert list(one.heats) == ["Eigen-CAM"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": ("bird",), "names": NAMES}, "unknown class 'bird'"),
        ({"classes": (3,)}, "class=3 must be 0 to 2"),
        ({"names": NAMES[:2]}, "2 names for 3 classes: give one for each"),
        ({"top": 0}, "top=0 is below 1"),
    ],
)
def test_what_cannot_be_explained(images, variables, options, sentence):
    with pytest.raises(InputError, match=sentence):
        explain(MODEL, variables, images, **options)


def test_a_network_of_another_kind(images):
    conv = nn.Conv(4, (3, 3))
    with pytest.raises(InputError, match="Conv returns no logits"):
        explain(conv, conv.init(jax.random.key(0), images), images)


def test_an_overlay_is_half_the_image_and_half_the_map():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0] = (255, 255, 255)
    heat = np.linspace(0, 1, 6).reshape(2, 3)
    found = overlay(image, heat)
    assert found.dtype == np.uint8
    colours = 255 * np.asarray(matplotlib.colormaps["viridis"](heat))[..., :3]
    grey = np.array([255, 0])[:, None, None]
    np.testing.assert_allclose(found, (colours + grey) / 2, atol=0.51)


def test_the_last_gate_of_each_stage():
    names = [
        "stem/se",
        "layer1_2/se",
        "layer1_10/se",
        "layer2_0/cbam/channel",
        "body/blocks_3_1/se",
    ]
    kept = last_of_stages({name: np.zeros(1) for name in names})
    assert set(kept) == set(names) - {"layer1_2/se"}


@pytest.mark.parametrize(
    ("gates", "height"), [({}, 720), ({"layer1_0/se": np.linspace(0, 1, 9)}, 1120)]
)
def test_a_picture_is_written(tmp_path, gates, height):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    one = Explanation({"a": np.eye(8), "b": np.zeros((8, 8))}, gates)
    write_picture(tmp_path / "cam.png", images, [one, one])
    with Image.open(tmp_path / "cam.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    brightest = [round(255 * part) for part in matplotlib.colormaps["viridis"](0.999)[:3]]
    assert np.abs(pixels - np.array(brightest)).sum(axis=-1).min() < 30  # of the bar of colours
    assert pixels.shape == (height, 1000, 3)


def test_pictures_that_cannot_be_written(tmp_path):
    images, one = np.zeros((1, 8, 8, 3), np.uint8), Explanation({"a": np.eye(8)}, {})
    with pytest.raises(InputError, match="unknown type of picture 'gift'"):
        write_picture(tmp_path / "cam.gift", images, [one])
    with pytest.raises(InputError, match=r"cannot write .*none"):
        write_picture(tmp_path / "none" / "cam.png", images, [one])
