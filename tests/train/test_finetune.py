"""configs/finetune.py on a folder of pictures: from torch's weights to the name of a class."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs import finetune
from flaxattn.__main__ import main
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import run
from flaxattn.train.start import start_from
from tests.torch_reference.torchvision_shim import timm

CLASSES = ("bright", "dark")


@pytest.fixture
def folder(tmp_path):
    """PATH/train and PATH/val with pictures of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for level, name in zip((200, 50), CLASSES, strict=True):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(level - 50, level + 50, (40, 48, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def hub(tmp_path):
    """A small timm ResNet with random weights, as its repositories are."""
    torch.manual_seed(0)
    network = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=7)
    place = tmp_path / "hub"
    place.mkdir()
    save_file(network.state_dict(), place / "model.safetensors")
    stated = {"architecture": "resnet10", "num_classes": 7}
    given = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    (place / "config.json").write_text(json.dumps(stated | {"pretrained_cfg": given}))
    return place


def config_of(arg, folder, hub):
    """The config of one command, debug-sized: 2 steps in each of three phases."""
    config = finetune.get_config(arg)
    config.data.data_dir = str(folder)
    start_from(config, str(hub))
    return config


def test_from_weights_to_predictions(folder, hub, tmp_path, capsys):
    result = run(config_of("se,debug", folder, hub), tmp_path / "mine", devices=jax.devices()[:1])
    assert result["count"] == 8
    picture = str(folder / "val" / "dark" / "0.png")
    assert main(["predict", picture, "--weights", str(tmp_path / "mine"), "--top", "1"]) == 0
    _, name = capsys.readouterr().out.splitlines()[1].split()
    assert name in CLASSES
    stated = json.loads((tmp_path / "mine" / "model.json").read_text())
    assert stated["model_fields"]["attention"] == {"name": "se", "graft": True}
    assert stated["mean"] == [0.5] * 3


@pytest.mark.parametrize(("arg", "attention"), [("plain,debug", 0), ("se", 4)])
def test_the_phases(folder, hub, arg, attention):
    """The new layers first, then the last stage too, then everything."""
    config = config_of(arg, folder, hub)
    config.batch_size = 8
    experiment = make_experiment(config, devices=jax.devices()[:1])
    first, second, third = experiment.phases
    assert {path[:2] for path in first.trainable if path[0] != "fc"} == {
        (f"layer{stage}_0", "se") for stage in range(1, 5)[:attention]
    }
    added = {path[0] for path in second.trainable - first.trainable}
    assert added == {"layer4_0"}
    assert third.trainable is None
    assert [float(p.schedule(0)) for p in experiment.phases] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert config.optim.clip_norm == 2
    variables = experiment.start()
    assert variables["params"]["fc"]["kernel"].shape == (512, 2)
