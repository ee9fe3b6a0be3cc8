"""python -m flaxattn convert | predict; list and describe are tested with the catalogue."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flaxattn import MODELS, weights
from flaxattn.__main__ import main
from flaxattn.models import ResNet
from flaxattn.weights import architecture

TINY = functools.partial(
    ResNet,
    stage_sizes=(1, 1, 1, 1),
    block="basic",
    width=8,
    context={"name": "se", "reduction": 4, "use_bias": False},
)
CONFIG = {
    "architecture": "tiny",
    "num_classes": 3,
    "label_names": ["cat", "dog", "newt"],
    "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.9, "label_names": None},
}


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setattr(architecture, "MODELS", dict.fromkeys(("resnet18", "tiny"), TINY))
    monkeypatch.setattr(architecture, "_SECONDS", 600)
    return TINY(num_classes=3)


@pytest.fixture
def variables(model):
    rng = np.random.default_rng(0)
    shapes = weights.abstract_variables(model, (1, 32, 32, 3))
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype("float32"), shapes)


@pytest.fixture
def folder(model, variables, tmp_path):
    """A repository as torch leaves one, trained in parallel, with an article's names."""
    tensors = weights.to_torch(variables, "articles", module=model)
    state = {f"module.{key}": torch.tensor(value) for key, value in tensors.items()}
    folder = tmp_path / "repository"
    folder.mkdir()
    torch.save({"state_dict": state, "epoch": 3}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def command(capsys, *arguments):
    """The standard output of a command that succeeds."""
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refused(capsys, *arguments):
    """The sentence of a command that does not."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_to_flax_and_back(capsys, folder, variables, tmp_path, suffix):
    flax, back = tmp_path / f"flax.{suffix}", tmp_path / "back.safetensors"
    line = command(capsys, "convert", folder, flax)
    assert line.startswith(f"{folder / 'pytorch_model.bin'} (articles) -> {flax} (flax), ")
    assert line.count("\n") == 1
    read = weights.read(flax)
    assert read.keys() == {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(variables)
    }

    command(capsys, "convert", flax, back, "--to", "torch", "--naming", "articles")
    original = torch.load(folder / "pytorch_model.bin")["state_dict"]
    tensors = load_file(back)
    assert {f"module.{key}" for key in tensors} == original.keys()
    assert all(torch.equal(tensors[key], original[f"module.{key}"]) for key in tensors)
    assert weights.fetch(back).config["label_names"] == CONFIG["label_names"]


def test_a_file_that_exists_stays(capsys, folder, tmp_path):
    out = tmp_path / "out.npz"
    out.write_text("precious")
    assert "exists" in refused(capsys, "convert", folder, out)
    assert out.read_text() == "precious"
    command(capsys, "convert", folder, out, "--force")
    assert weights.read(out)


def test_an_entry(capsys, folder, tmp_path):
    two = tmp_path / "two.pth"
    content = torch.load(folder / "pytorch_model.bin")
    torch.save(content | {"state_dict_ema": content["state_dict"]}, two)
    given = ("convert", two, tmp_path / "out.npz", "--model", "tiny", "--num-classes", "3")
    assert "'state_dict', 'state_dict_ema'" in refused(capsys, *given)
    command(capsys, *given, "--entry", "state_dict_ema")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "tinny"], "unknown model 'tinny': did you mean tiny"),
        (["--naming", "article"], "unknown naming of ResNet 'article': did you mean articles"),
        (["--num-classes", "9"], "only the head differs, .* (num_classes=3)"),
        (["--revision", "v1"], "revision='v1' belongs to a repository"),
        (["--model", "resnet18"], "look like the weights of tiny"),
    ],
)
def test_what_cannot_be_converted(capsys, folder, tmp_path, options, sentence):
    out = tmp_path / "out.safetensors"
    printed = refused(capsys, "convert", folder, out, *options)
    for part in sentence.split(".*"):
        assert part in printed
    assert not out.exists()


def test_a_file_that_does_not_say_what_it_is(capsys, folder, tmp_path):
    (folder / "config.json").unlink()
    assert "add --model NAME" in refused(capsys, "convert", folder, tmp_path / "out.npz")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_predictions(capsys, folder, picture, tmp_path):
    lines = command(capsys, "predict", picture, "--weights", folder).splitlines()
    assert lines[0] == str(picture)
    probabilities, names = zip(*(line.split() for line in lines[1:]), strict=True)
    assert set(names) == {"cat", "dog", "newt"}
    assert sum(map(float, probabilities)) == pytest.approx(1, abs=2e-4)
    assert sorted(probabilities, reverse=True) == list(probabilities)

    labels = tmp_path / "labels.txt"
    labels.write_text("un chat\nun chien\nun triton\n", encoding="utf-8")
    given = ("predict", picture, picture, "--weights", folder, "--labels", labels, "--top", "1")
    french = command(capsys, *given).splitlines()
    assert len(french) == 4
    translated = {"cat": "un chat", "dog": "un chien", "newt": "un triton"}
    assert french[1] == french[3] == f"  {probabilities[0]}  {translated[names[0]]}"


def test_what_cannot_be_predicted(capsys, folder, picture, tmp_path):
    picture.write_text("no picture")
    sentence = refused(capsys, "predict", picture, "--weights", folder)
    assert sentence.startswith(f"{picture} cannot be read as an image")
    assert "cannot read class names" in refused(
        capsys, "predict", picture, "--weights", folder, "--labels", tmp_path / "none.txt"
    )
