"""One call from a checkpoint to a network, beside timm's own."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import flaxattn
from flaxattn import BatchNorm, InputError
from flaxattn.__main__ import main
from flaxattn.models.detection import DETECTORS
from flaxattn.models.segmentation import create_segmenter
from flaxattn.weights import (
    Checkpoint,
    DetectorPreprocessing,
    Preprocessing,
    SegmenterPreprocessing,
    kinds,
)
from flaxattn.weights.kinds import all_names, preprocessing_of, stated_model
from tests.attention import parity
from tests.torch_reference.torchvision_shim import timm, torchvision

# One of each family, small. The config's input is its own, so that no other size can pass for it.
NAMES = (
    "test_resnet",
    "legacy_seresnet18",
    "skresnet18",
    "resnest14d",
    "test_efficientnet",
    "tf_mobilenetv3_small_minimal_100",
    "mobilenetv2_035",
    "regnety_002",
    "lcnet_035",
    "tinynet_e",
)
FEW = ("test_resnet", "test_efficientnet", "lcnet_035")
CONFIG = {"input_size": [3, 64, 96], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.fixture
def directory(tmp_path):
    def write(name, **fields):
        """A directory as the hub's, and timm's network whose weights it has."""
        theirs = timm.create_model(name, num_classes=7).eval()
        parity.randomise(theirs, np.random.default_rng(0))
        config = {"architecture": name, "num_classes": 7, "pretrained_cfg": CONFIG} | fields
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        return tmp_path, theirs

    return write


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in NAMES]
)
def test_logits_are_timms(name, directory, picture):
    path, theirs = directory(name)
    model, variables, preprocessing = flaxattn.from_pretrained(path)
    x = preprocessing(picture)[None]
    assert x.shape == (1, 64, 96, 3)
    ours = jax.jit(model.apply)(variables, x)
    with torch.no_grad():
        expected = theirs(torch.tensor(parity.to_channels_first(x))).numpy()
    assert parity.difference(ours, expected) <= 1e-4


def test_a_new_head_and_a_graft_leave_the_rest(directory, picture):
    path, _ = directory("test_resnet")
    plain = flaxattn.from_pretrained(path, num_classes=0)
    x = plain.preprocessing(picture)[None]
    found = flaxattn.from_pretrained(path, num_classes=3, attention="cbam", seed=1)
    assert found.model.num_classes == 3
    assert found.variables["params"]["fc"]["kernel"].shape[-1] == 3
    assert "se" in found.variables["params"]["layer1_0"]
    features = [
        jax.jit(lambda v, x, m=network.model: m.apply(v, x, method="features"))(
            network.variables, x
        )[-1]
        for network in (plain, found)
    ]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)
    again = flaxattn.from_pretrained(path, num_classes=3, attention="cbam", seed=1)
    jax.tree.map(np.testing.assert_array_equal, again.variables, found.variables)


def test_fields_are_the_models(directory):
    path, _ = directory("test_resnet")
    model, _, _ = flaxattn.from_pretrained(path, output_stride=8, dropout=0.5)
    assert (model.output_stride, model.dropout, model.num_classes) == (8, 0.5, 7)


def test_without_an_architecture_in_the_config_nothing_is_guessed(directory):
    path, _ = directory("test_resnet", architecture=None)
    with pytest.raises(InputError, match=r"no config names the architecture .*: pass arch"):
        flaxattn.from_pretrained(path)
    model, _, preprocessing = flaxattn.from_pretrained(path, architecture="test_resnet")
    assert (model.num_classes, preprocessing.input_size) == (7, (64, 96, 3))
    path, _ = directory("test_resnet", architecture="vit_base_patch16_224")
    with pytest.raises(InputError, match="unknown model 'vit_base_patch16_224'"):
        flaxattn.from_pretrained(path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_classes": "1000"}, "has num_classes='1000', which must be an integer of 0 or more"),
        ({"num_classes": -3}, "has num_classes=-3, which must be an integer of 0 or more"),
        ({"architecture": ["resnet18"]}, "which must be the name of a model: repair it"),
        ({"input_size": 224}, "input_size must be the integers"),
        ({"input_size": [3, 10**30, 224]}, r"must be .* integers from 1 to"),
    ],
)
def test_a_config_of_other_kinds(directory, fields, sentence):
    path, _ = directory("test_resnet", **fields)
    with pytest.raises(InputError, match=sentence):
        flaxattn.from_pretrained(path)


def test_what_torchvisions_weights_are_prepared_by():
    nothing = Checkpoint(Path("weights.pth"), {})
    prepared = {name: preprocessing_of(nothing, name) for name in all_names()}
    small = "fasterrcnn_mobilenet_v3_large_320_fpn"
    assert prepared["resnet50"] == Preprocessing()
    assert prepared["fasterrcnn_resnet50_fpn"] == DetectorPreprocessing(800, 1333)
    assert prepared[small] == DetectorPreprocessing(320, 640)
    assert prepared["fcn_resnet50"] == SegmenterPreprocessing(520)
    for name in DETECTORS:
        builder = torchvision.models.get_model_builder(name)
        with torch.device("meta"):
            transform = builder(weights=None, weights_backbone=None).transform
        sizes = (transform.min_size[0], transform.max_size)
        assert (prepared[name].min_size, prepared[name].max_size) == sizes
    assert stated_model(nothing, small).num_classes == 91
    assert stated_model(nothing, "fcn_resnet50").num_classes == 21


def test_the_file_that_wants_an_epsilon_of_zero_is_known_by_its_checksum(tmp_path, monkeypatch):
    (entry,) = torchvision.models.get_model_weights("fasterrcnn_resnet50_fpn")
    assert entry.url.endswith(f"-{kinds._COCO_V1[1]}.pth")
    file = Checkpoint(tmp_path / "weights.pth", {})
    file.path.write_bytes(b"weights")
    epsilons = []
    for checksum in (kinds._COCO_V1[1], hashlib.sha256(b"weights").hexdigest()[:8]):
        monkeypatch.setattr(kinds, "_COCO_V1", ("fasterrcnn_resnet50_fpn", checksum))
        epsilons.append(stated_model(file, "fasterrcnn_resnet50_fpn").norm().epsilon)
    assert epsilons == [1e-5, 0.0]
    assert main(["convert", str(file.path), "out.npz", "--model", "fasterrcnn_resnet50_fpn"]) == 2
    v2 = stated_model(file, "fasterrcnn_resnet50_fpn_v2")
    assert v2.norm is BatchNorm


def test_detectors_and_segmenters_have_attention_alone(tmp_path):
    fields = {"backbone": {"stage_sizes": (1, 1), "width": (8, 8)}, "head": {"features": 8}}
    fields |= {"places": ((1, -1), (2, -1)), "aux_place": (2, -1)}
    model = create_segmenter("lraspp_resnet10", 3, **fields)
    variables = flaxattn.initialise(model, jax.random.key(0), (1, 33, 33, 3))
    config = {"architecture": "lraspp_resnet10", "num_classes": 3, "model_fields": fields}
    flaxattn.weights.write(tmp_path / "model.npz", variables, config=config)
    found = flaxattn.from_pretrained(tmp_path, num_classes=5, attention="eca")
    assert found.model.num_classes == 5
    assert found.model.attention.graft
    assert "neck" in found.variables["params"]
    kept = found.variables["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, kept, variables["params"]["backbone"])
    for slot in ("conv", "context"):
        with pytest.raises(InputError, match=f"Segmenter has no {slot} slot: use another one"):
            flaxattn.from_pretrained(tmp_path, **{slot: "sk"})
