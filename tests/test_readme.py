"""What the README and the pages under docs/ say is so: their code runs, their commands exist."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs import digit_groups, digits
from flaxattn import create_attention, create_model, initialise, weights
from flaxattn.__main__ import command_line
from flaxattn.images.decoding import decode
from flaxattn.inspect.catalogue import markdown
from flaxattn.train.checkpoint import Checkpoints
from flaxattn.train.config import base_config
from flaxattn.train.phases import make_phases
from flaxattn.train.state import TrainState
from flaxattn.train.workdir import flat_fields
from flaxattn.weights.kinds import _PREPARED
from tests.torch_reference.torchvision_shim import timm, torchvision
from tools.by_role import by_role

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHINESE = ROOT / "README.zh.md"
PAGES = [ROOT / "README.md", CHINESE, ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))

# A test below runs their Python, in its order.
WITH_PYTHON = {"README.md", "README.zh.md", "common-mistakes.md", "detection.md", "from-pytorch.md"}
WITH_PYTHON |= {"export.md", "maps.md", "segmentation.md", "training.md", "weights.md"}
# Of shell commands a test below reads the arguments, and runs none: they train for minutes, want
# images and weights that only their readers have, or make an environment of their own.
READ = ("python train.py", "python -m flaxattn", "make", "pip install")
ELSEWHERE = {
    "python -m benchmarks.tpu": "tests/benchmarks/test_tpu.py",
    "hf download": "needs a network",
    "tfds build": "needs TensorFlow and a network",
    "gcloud compute tpus tpu-vm ssh": "needs a TPU pod; the train.py in it is read",
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def shell(page):
    """The lines of the page's shell blocks, each command in one."""
    return "".join(blocks(page, "sh")).replace("\\\n", " ")


def commands(page):
    """The arguments of each `python train.py` in the page's shell blocks."""
    found = re.findall(r'python train\.py ([^"\n&#]+)', shell(page))
    return [shlex.split(arguments) for arguments in found]


def load_config(name):
    path, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location("readme_config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def test_the_list_of_mechanisms_is_fresh():
    (names,) = re.findall(r"<!-- mechanisms: .* -->\n(.*?)<!-- /mechanisms -->", README, re.S)
    assert names.strip() == by_role(), "paste what the command in the comment prints"


@pytest.mark.parametrize("language", ["python", "sh"])
def test_the_chinese_readme_has_the_code_of_the_english_one(language):
    """Which runs in the tests below."""
    assert blocks(CHINESE, language) == blocks(ROOT / "README.md", language)


def test_the_page_of_mechanisms_is_fresh():
    page = (ROOT / "docs" / "mechanisms.md").read_text()
    assert page.rstrip() == markdown().rstrip(), (
        "python -m flaxattn list --markdown > docs/mechanisms.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_command_of_the_pages_can_be_given():
    train = (ROOT / "train.py").read_text()
    flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', train))
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) > 5
    for command in found:
        assert command[0] == "--config"
        fields = flat_fields(load_config(command[1]).to_dict())
        for word in command[2:]:
            if word.startswith("--config."):
                assert word.removeprefix("--config.").partition("=")[0] in fields, word
            elif word.startswith("--"):
                assert word[2:] in flags, word


def test_every_command_of_the_package_can_be_given():
    given = set()
    for page in PAGES:
        for found in re.findall(r"python -m flaxattn ([^\n]+)", shell(page)):
            given.add(command_line().parse_args(shlex.split(found, comments=True)).command)
    assert given == {"list", "describe", "convert", "predict", "cam", "compare", "export"}


def test_every_make_target_of_the_pages_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"^make ([a-z-]+)", shell(page), re.M)}
    named |= {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert {"train", "test", "docs"} <= named <= targets


def test_every_extra_of_the_pages_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = "".join(page.read_text() for page in PAGES)
    found = re.findall(r'pip install "(?:flaxattn|\.)\[([\w,-]+)\]"', text)
    assert {"hub", "coco"} <= {extra for names in found for extra in names.split(",")} <= {*extras}


def test_no_code_of_the_pages_goes_untried():
    assert {page.name for page in PAGES if blocks(page, "python")} == WITH_PYTHON
    lines = {line.strip() for page in PAGES for line in shell(page).splitlines()} - {""}
    assert [line for line in lines if not line.startswith((*READ, *ELSEWHERE))] == []
    for page in PAGES:
        known = {"python", "sh", "text"} if page.name == "export.md" else {"python", "sh"}
        assert set(re.findall(r"^```(.+)$", page.read_text(), re.M)) <= known


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with the files that the snippets read."""
    monkeypatch.chdir(tmp_path)
    network = timm.create_model("seresnet50").eval()
    save_file(network.state_dict(), "model.safetensors")
    model = create_model(num_classes=10, **digits.get_config("se").model)
    variables = initialise(model, jax.random.key(0), (1, 8, 8, 1))
    checkpoints = Checkpoints(Path("runs/se/checkpoints"), keep=1)
    checkpoints.save(1, TrainState.starting(variables, optax.sgd(0.1), ema=True))
    checkpoints.close()
    return network.state_dict()


def test_the_checks_for_any_layer_run():
    names = {}
    (checks,) = blocks(ROOT / "docs" / "common-mistakes.md", "python")
    exec(compile(checks, "common-mistakes.md", "exec"), names)
    assert names["parameters"] == 2 * 64 * 4 + 98


def test_the_phases_of_the_page_about_training_are_legal():
    names = {"config": base_config()}
    for snippet in blocks(ROOT / "docs" / "training.md", "python"):
        exec(compile(snippet, "training.md", "exec"), names)
    model = create_model(num_classes=10, **digits.get_config("se").model)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    phases = make_phases(names["config"], model, [image], steps_per_epoch=1, total_steps=20)
    assert [phase.first_step for phase in phases] == [0, 5, 15]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """timm's resnet18 with random weights where huggingface_hub keeps it, and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    folder = tmp_path / "models--timm--resnet18.a1_in1k"
    network = timm.create_model("resnet18.a1_in1k").eval()
    snapshot = folder / "snapshots" / commit
    timm.models.save_for_hf(network, snapshot, safe_serialization=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)).save("cat.jpg")
    return network


def test_the_snippets_about_weights_run_in_their_order(repository, capsys):
    names = {}
    for snippet in blocks(ROOT / "docs" / "weights.md", "python"):
        exec(compile(snippet, "weights.md", "exec"), names)
    slots = [f"layer{stage}_{block}/se" for stage in range(1, 5) for block in range(2)]
    assert names["loaded"].fresh == ("fc", *slots)
    assert names["checkpoint"].config["architecture"] == "resnet18"

    config = timm.data.resolve_model_data_config(repository)
    x = timm.data.create_transform(**config)(Image.open("cat.jpg"))[None]
    with torch.no_grad():
        best = repository(x).softmax(-1)[0].topk(5)
    assert names["preprocessing"].interpolation == config["interpolation"]
    assert [found.label for found in names["predictions"]] == best.indices.tolist()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for _, name in printed] == [str(i) for i in best.indices.tolist()]


def test_the_snippets_for_those_who_come_from_pytorch_run():
    names = {}
    for snippet in blocks(ROOT / "docs" / "from-pytorch.md", "python"):
        exec(compile(snippet, "from-pytorch.md", "exec"), names)
    assert names["model"].num_classes == 10


def test_the_snippets_about_maps_run_in_their_order(tmp_path, monkeypatch):
    """With a network that has learnt nothing."""
    monkeypatch.chdir(tmp_path)
    fields = digit_groups.get_config("se").model.to_dict()
    model = create_model(num_classes=10, **fields)
    stated = {"architecture": fields.pop("name"), "num_classes": 10, "model_fields": fields}
    stated |= {"input_size": (1, 24, 24), "mean": (0.086,), "std": (0.242,), "crop_pct": 1.0}
    Path("runs/groups").mkdir(parents=True)
    variables = initialise(model, jax.random.key(0), (1, 24, 24, 1))
    weights.write("runs/groups/model.npz", variables, config=stated)
    names = {}
    for snippet in blocks(ROOT / "docs" / "maps.md", "python"):
        exec(compile(snippet, "maps.md", "exec"), names)
    assert names["gates"].shape == (2, 64)
    assert names["heat"].shape == (2, 24, 24)
    assert decode("overlay.png", channels=3).shape == (24, 24, 3)
    assert names["likeness"] < 0.9
    assert names["own"].shape == (2, 24, 24)


def test_the_snippets_about_export_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in blocks(ROOT / "docs" / "export.md", "python"):
        exec(compile(snippet, "export.md", "exec"), names)
    assert (
        names["largest_difference"](
            *(names[name] for name in ("graph", "model", "variables", "images")), layout="NCHW"
        )
        < 1e-5
    )
    assert names["logits"].shape == (2, 10)
    layer = create_attention("se")
    variables = initialise(layer, jax.random.key(0), (1, 16, 16, 64))
    graph = names["to_onnx"](layer, variables, (None, 16, 16, 64), layout="NCHW")
    assert blocks(ROOT / "docs" / "export.md", "text") == [names["draw"](graph) + "\n"]


def test_the_snippets_about_segmentation_run_in_their_order(tmp_path, monkeypatch):
    """On a smaller picture, and on a smaller ResNet with attention."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(_PREPARED, "lraspp_mobilenet_v3_large", {"eval_resize": 33})
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)).save("cat.jpg")
    torch.manual_seed(0)
    known = torchvision.models
    network = known.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), "lraspp_mobilenet_v3_large-d234d4ea.pth")
    classifier = known.mobilenet_v3_large().state_dict()
    torch.save(classifier, "mobilenet_v3_large-5c1a4163.pth")
    names = {}
    drawing, calling, attention, training, *others = blocks(
        ROOT / "docs" / "segmentation.md", "python"
    )
    attention = attention.replace("dict(att", "dict(stage_sizes=(1, 1, 1, 1), width=8, att")
    for snippet in (drawing, calling, attention, training):
        exec(compile(snippet, "segmentation.md", "exec"), names)
    with torch.no_grad():
        out = network.eval()(torch.tensor(names["x"].transpose(0, 3, 1, 2)))["out"]
    assert np.mean(names["logits"].argmax(-1) == out.argmax(1).numpy()) > 0.99
    assert decode("drawn/cat.png", channels=3).shape == (*names["classes"].shape, 3) == (40, 60, 3)
    variables, images = names["variables"], np.zeros((2, 65, 65, 3), np.float32)
    labels = np.zeros(images.shape[:-1], np.int32)
    collections = variables["params"], variables["batch_stats"]
    value, moved = names["loss"](*collections, images, labels, jax.random.key(0))
    assert np.isfinite(value)
    assert moved.keys() == {"batch_stats"}
    assert {"neck", "aux_classifier"} <= variables["params"].keys()
    assert "se" in variables["params"]["backbone"]["layer3_0"]

    for snippet in others:
        exec(compile(snippet, "segmentation.md", "exec"), names)
    assert names["loaded"].fresh == ("classifier/low_classifier", "classifier/high_classifier")
    back = weights.to_torch(names["variables"], "torchvision", module=names["model"])
    for key, tensor in classifier.items():
        if key.startswith("features.") and "num_batches" not in key:
            np.testing.assert_array_equal(back[key.replace("features", "backbone")], tensor)


def test_the_snippets_about_detection_run_in_their_order(tmp_path, monkeypatch):
    """On a smaller canvas; that the detections are torchvision's is another test."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)).save("street.jpg")
    torch.manual_seed(0)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    network = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), f"{name}-907ea3f9.pth")
    monkeypatch.setitem(_PREPARED, name, {"min_size": 64, "max_size": 96})
    names = {}
    for snippet in blocks(ROOT / "docs" / "detection.md", "python"):
        exec(compile(snippet, "detection.md", "exec"), names)
    assert names["found"].boxes.shape == (1, 100, 4)
    assert decode("drawn/street.png", channels=3).shape == (40, 60, 3)
    assert names["model"].attention.share


def test_the_snippets_of_the_readme_run_in_their_order(files):
    names = {}
    snippets = blocks(PAGES[0], "python")
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)

    assert names["y"].shape == names["x"].shape
    assert names["logits"].shape == (1, 1000)
    assert len(names["maps"]) == len(names["model"].feature_strides) == 5
    # Stages 3 and 4 of ResNet-50 have nine blocks.
    assert len(jax.tree.leaves(names["seen"])) == 9
    assert names["Block"]().init_with_output(jax.random.key(0), names["x"])[0].shape[-1] == 64
    back = names["state_dict"]
    assert back.keys() == {key for key in files if "num_batches_tracked" not in key}
    for key, value in back.items():
        np.testing.assert_array_equal(value, files[key].numpy())
