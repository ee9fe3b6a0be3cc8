"""python -m flaxattn: convert, predict and cam, and what describe refuses; the rest of describe and
list are tested with the catalogue."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import flaxattn
from flaxattn import MODELS, weights
from flaxattn.__main__ import main
from flaxattn.models import ResNet
from flaxattn.models.detection import DETECTORS
from flaxattn.models.segmentation import SEGMENTERS
from flaxattn.models.vgg import VGG
from tests.models.test_vgg import SIZES
from tests.models.test_vgg import small as small_vgg
from tests.torch_reference.torchvision_shim import timm, torchvision

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

    line = command(capsys, "convert", flax, back, "--to", "torch", "--to-naming", "articles")
    assert line.startswith(f"{flax} (flax) -> {back} (articles), ")
    original = torch.load(folder / "pytorch_model.bin")["state_dict"]
    tensors = load_file(back)
    assert {f"module.{key}" for key in tensors} == original.keys()
    assert all(torch.equal(tensors[key], original[f"module.{key}"]) for key in tensors)
    assert weights.fetch(back).config["label_names"] == CONFIG["label_names"]


def test_to_a_file_that_torch_opens(capsys, folder, model, tmp_path):
    """Strictly: torch's own loader takes no key too many and none too few."""
    out = tmp_path / "out.pth"
    assert "these are Flax variables" in refused(capsys, "convert", folder, out)
    assert not out.exists()
    line = command(capsys, "convert", folder, out, "--to", "torch")
    assert f"(articles) -> {out} (articles), " in line
    original = torch.load(folder / "pytorch_model.bin")["state_dict"]
    written = torch.load(out, weights_only=True)
    assert {f"module.{key}" for key in written} == original.keys()
    assert all(torch.equal(tensor, original[f"module.{key}"]) for key, tensor in written.items())
    assert weights.fetch(out).config["label_names"] == CONFIG["label_names"]
    assert command(capsys, "convert", out, tmp_path / "flax.npz")
    weights.load(model, out, (1, 32, 32, 3))


@pytest.mark.parametrize(("naming", "written"), [(None, "articles"), ("timm", "timm")])
def test_torchs_tensors_keep_their_names_or_get_others(capsys, folder, tmp_path, naming, written):
    out = tmp_path / "out.safetensors"
    given = [] if naming is None else ["--to-naming", naming]
    line = command(capsys, "convert", folder, out, "--to", "torch", *given)
    assert f"(articles) -> {out} ({written}), " in line
    original = torch.load(folder / "pytorch_model.bin")["state_dict"]
    same = {key.removeprefix("module.") for key in original} == load_file(out).keys()
    assert same == (written == "articles")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("timm", "resnet18"),
        ("timm", "skresnet18"),
        ("timm", "legacy_seresnet18"),
        ("timm", "regnety_002"),
        ("timm", "small_vgg"),
        ("timm", "mobilenetv2_035"),
        ("timm", "mobilenetv3_small_050"),
        ("timm", "efficientnet_b0"),
        ("torchvision", "resnet18"),
        ("torchvision", "small_vgg"),
        ("torchvision", "mobilenet_v3_small"),
    ],
)
def test_torch_takes_what_it_is_given_back(capsys, monkeypatch, tmp_path, source, name):
    """Its own keys from its own file; and timm's from Flax's arrays."""
    torch.manual_seed(0)
    if name == "small_vgg":
        _, network = small_vgg(source, batch_norm=True)
        fields = {"batch_norm": True, "width": 8, "hidden_features": 24}
        monkeypatch.setitem(MODELS, name, functools.partial(VGG, SIZES["small"], **fields))
    elif source == "timm":
        network = timm.create_model(name, num_classes=5)
    else:
        network = torchvision.models.get_model(name, num_classes=5)
    state = {k: t for k, t in network.state_dict().items() if "num_batches_tracked" not in k}
    given, flax, back = (tmp_path / f for f in ("given.pth", "flax.safetensors", "back.npz"))
    torch.save(network.state_dict(), given)
    model = ("--model", name, "--num-classes", "5")
    command(capsys, "convert", given, flax, *model)
    for file in (given, flax) if source == "timm" else (given,):
        command(capsys, "convert", file, back, *model, "--to", "torch", "--force")
        tensors = weights.read(back)
        assert tensors.keys() == state.keys()
        for key, tensor in state.items():
            np.testing.assert_array_equal(tensors[key], tensor.numpy(), strict=True, err_msg=key)


def test_namings_in_and_out_are_not_confused(capsys, folder, tmp_path):
    flax, out = tmp_path / "flax.npz", tmp_path / "out.npz"
    command(capsys, "convert", folder, flax)
    sentence = refused(capsys, "convert", flax, out, "--to", "torch", "--naming", "timm")
    assert "has Flax's: leave it out, or name those of" in sentence
    assert "add --to torch" in refused(capsys, "convert", folder, out, "--to-naming", "timm")
    given = ("convert", folder, out, "--to", "torch", "--to-naming")
    assert "unknown naming of ResNet 'tim': did you mean timm" in refused(capsys, *given, "tim")
    assert "(own), " in command(capsys, *given, "own")


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
    for flag, value in (("--threshold", "0.5"), ("--out", tmp_path)):
        sentence = refused(capsys, "predict", picture, "--weights", folder, flag, value)
        assert "tiny is a classifier, and this is for detectors" in sentence
    assert "top=0 is below 1" in refused(
        capsys, "predict", picture, "--weights", folder, "--top", "0"
    )


def test_a_picture_of_where_the_classes_are(capsys, folder, picture, tmp_path):
    out = tmp_path / "cam.pdf"
    given = ("cam", picture, picture, "--weights", folder, "--out", out, "--layer", "layer2_0")
    assert command(capsys, *given, "--classes", "newt,0") == f"{out}\n"
    assert out.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--classes", "bird"), "unknown class 'bird'"),
        (("--method", "gradcam"), "unknown method 'gradcam': did you mean grad_cam"),
        (("--layer", "fc"), "layer='fc' returns (1, 3)"),
    ],
)
def test_what_no_picture_is_made_of(capsys, folder, picture, tmp_path, arguments, sentence):
    out = tmp_path / "cam.png"
    given = ("cam", picture, "--weights", folder, "--out", out, *arguments)
    assert sentence in refused(capsys, *given)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resnet5O"], "unknown mechanism or model 'resnet5O': did you mean resnet50"),
        (["fcn_resnet5O"], "did you mean fcn_resnet50"),
        (["lraspp_resnet10", "--conv", "sk"], "unknown field of Segmenter 'conv'"),
        (["cbma"], "unknown attention 'cbma': did you mean cbam"),
        (["psa"], "'psa'"),
        (["tiny", "--features", "7"], "--features 7: tiny is a model, which has its own; leave"),
        (["se", "--attention", "cbam"], "--attention 'cbam': se is a mechanism, and only models"),
        (["tiny", "--size", "0"], "size=0 must be 1 to"),
        (["tiny", "--attention", "se,reduction=-1"], "reduction=-1"),
        (["tiny", "--attention", "se,reduction=0.5"], "reduction=0.5 must be an integer"),
        (["tiny", "--attention", "se,reduction=few"], "reduction='few' must be an integer"),
        (["tiny", "--attention", "se,=3"], "unknown field"),
    ],
)
def test_what_cannot_be_described(capsys, arguments, sentence):
    assert sentence in refused(capsys, "describe", *arguments)


@pytest.mark.parametrize("name", ["lraspp_resnet10", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_a_segmenter_and_a_detector_are_described(capsys, name):
    lines = command(capsys, "describe", name, "--size", "64", "--attention", "eca").splitlines()
    assert lines[-1].startswith(f"{name} at 64x64: ")
    assert any(" EfficientChannel " in line for line in lines)


def test_a_placement_on_the_command_line(capsys):
    given = ("describe", "seresnet18", "--size", "32", "--attention")
    own = command(capsys, *given, "None")
    assert "layer1_0/se" in own
    assert "layer1_0/se" not in command(capsys, *given, "False")
    assert command(capsys, *given, "se,reduction=16,use_bias=True,stages=1+2") != own


def test_the_models_are_listed_by_a_part_of_their_names(capsys):
    assert main(["list", "--models", "seresnext"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "seresnext50_32x4d" in listed
    assert all("seresnext" in name for name in listed)
    assert main(["list", "--models"]) == 0
    assert capsys.readouterr().out.splitlines() == sorted({*MODELS, *DETECTORS, *SEGMENTERS})
    assert main(["list", "--models", "vision_transformer"]) == 2


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"flaxattn {flaxattn.__version__}\n"
