"""From a checkpoint that timm wrote, and image files, to the classes that timm finds."""

import numpy as np
import pytest
import torch
from PIL import Image

from flaxattn import InputError, create_model, predict, weights
from tests.attention import parity
from tests.torch_reference.torchvision_shim import timm

SIZES = [(70, 45), (40, 64), (33, 33)]
NAMES = [f"class {i}" for i in range(7)]
DATA = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}


@pytest.fixture(scope="module")
def network():
    """timm's ResNet-10 with a quarter of the channels, and random weights and statistics."""
    model = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock,
        (1, 1, 1, 1),
        num_classes=7,
        stem_width=16,
        channels=(16, 32, 64, 128),
    )
    conv = torch.nn.Conv2d(3, 16, 7, 2, 3, bias=False)
    model.conv1, model.bn1 = conv, torch.nn.BatchNorm2d(16)
    model.layer1[0].conv1 = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False)
    model.layer1[0].downsample = None
    parity.randomise(model, np.random.default_rng(0))
    return model.eval()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """What timm's own save leaves of it."""
    folder = tmp_path_factory.mktemp("saved")
    network.pretrained_cfg = timm.models.PretrainedCfg(architecture="resnet10").to_dict()
    timm.models.save_for_hf(
        network,
        folder,
        model_config={"num_classes": 7, "label_names": NAMES},
        safe_serialization=True,
        data_config=DATA,
    )
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(len(SIZES))]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def loaded(folder):
    checkpoint = weights.fetch(folder)
    model = create_model("resnet10", num_classes=7, width=16)
    return model, weights.load(model, checkpoint, (1, 32, 32, 3)), checkpoint.config


def test_it_finds_what_timm_finds(network, loaded, pictures):
    model, variables, config = loaded
    preprocessing = weights.Preprocessing.of(config)
    assert preprocessing.interpolation == "bicubic"
    names = weights.class_names(config)
    found = predict(model, variables, pictures, preprocessing=preprocessing, classes=names, top=3)

    transform = timm.data.create_transform(**DATA)
    batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
    with torch.no_grad():
        probabilities = network(batch).softmax(-1)
    best = probabilities.topk(3)
    for row, labels, values in zip(found, best.indices, best.values, strict=True):
        assert [p.label for p in row] == labels.tolist()
        assert [p.name for p in row] == [NAMES[i] for i in labels]
        np.testing.assert_allclose([p.probability for p in row], values, rtol=1e-4)


def test_more_images_than_a_batch(loaded, pictures, monkeypatch):
    model, variables, config = loaded
    given = {"preprocessing": weights.Preprocessing.of(config), "top": 99}
    together = predict(model, variables, pictures, **given)
    assert {len(row) for row in together} == {7}
    assert together[0][0].name == str(together[0][0].label)
    monkeypatch.setattr("flaxattn.prediction.classes._BATCH", 2)
    for row, other in zip(predict(model, variables, pictures, **given), together, strict=True):
        assert [p.label for p in row] == [p.label for p in other]
        np.testing.assert_allclose(
            [p.probability for p in row], [p.probability for p in other], rtol=1e-5
        )


def test_what_cannot_be_predicted(loaded, pictures, tmp_path):
    model, variables, config = loaded
    given = {"preprocessing": weights.Preprocessing.of(config)}
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:200])
    for path in (broken, tmp_path / "nothing.png"):
        with pytest.raises(InputError, match=rf"{path} cannot be read as an image"):
            predict(model, variables, [pictures[0], path], **given)
    with pytest.raises(InputError, match="there are no images"):
        predict(model, variables, [], **given)
    with pytest.raises(InputError, match="top=0 is below 1"):
        predict(model, variables, pictures[0], top=0, **given)
    with pytest.raises(InputError, match="2 names for the 7 classes"):
        predict(model, variables, pictures, classes=["cat", "dog"], **given)


def test_grey_images_for_a_network_of_colours(loaded, pictures):
    model, variables, _ = loaded
    grey = weights.Preprocessing((32, 32, 1), (0.5,), (0.5,))
    sentence = r"input_size=\(32, 32, 1\) has 1 channels, but the kernel conv1 .* takes 3"
    with pytest.raises(InputError, match=sentence):
        predict(model, variables, pictures, preprocessing=grey)
    kernel = variables["params"]["conv1"]["kernel"].sum(2, keepdims=True)
    params = variables["params"] | {"conv1": {"kernel": kernel}}
    greys = predict(model, variables | {"params": params}, pictures, preprocessing=grey)
    assert len(greys) == len(pictures)
    rgb = weights.Preprocessing((32, 32, 3))
    with pytest.raises(InputError, match=r"has 3 channels, but the kernel conv1 .* takes 1: use"):
        predict(model, variables | {"params": params}, pictures, preprocessing=rgb)
    with pytest.raises(InputError, match="these variables are not those of this ResNet"):
        predict(model.clone(num_classes=3), variables, pictures, preprocessing=rgb)
