"""The direction of the imports inside the package, and what `import flaxattn` leaves alone."""

import ast
import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flaxattn import ATTENTION
from flaxattn.attention.mechanism import Part, layer_of
from flaxattn.models import ResNet
from flaxattn.models.backbone import Backbone
from flaxattn.models.inverted_residual_net import InvertedResidualNet
from flaxattn.models.vgg import VGG

PACKAGE = Path(__file__).parent.parent / "flaxattn"

BASE = {"errors", "extras", "layers"}
CHAIN = [BASE, {"attention"}, {"models"}, {"tasks"}]
BELOW_TRAIN = set().union(*CHAIN)
ALL = BELOW_TRAIN | {"images", "weights", "data", "train"}

# What each part of the package may import of the package, itself included.
MAY_IMPORT = {
    **{part: set().union(*CHAIN[: i + 1]) for i, parts in enumerate(CHAIN) for part in parts},
    "images": BASE | {"images"},
    "tasks": BELOW_TRAIN | {"images"},
    "data": BASE | {"images", "data"},
    "train": ALL,
    "weights": BELOW_TRAIN | {"images", "weights"},
    "inspect": ALL | {"inspect"},
    "export": ALL | {"export"},
    "prediction": ALL | {"prediction"},
    "__init__": BELOW_TRAIN | {"weights", "prediction"},
    "commands": ALL | {"inspect", "export", "prediction", "commands"},
    "__main__": {"commands", "errors", "__init__"},
}

NOWHERE = {"tensorflow", "torch", "torchvision", "timm"}
ONLY_TRAIN_AND_DATA = {"orbax", "grain", "tensorflow_datasets", "optax"}
LAYERS_NEED_ONLY = {"jax", "flax", "numpy", "scipy"} | sys.stdlib_module_names


def imported(source):
    """Every absolute module name that `source` imports, in functions too."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [
                f"flaxattn.{alias.name}" if is_part(alias.name) else node.module
                for alias in (node.names if node.module == "flaxattn" else node.names[:1])
            ]
    return names


def is_part(name):
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def violations(part, source):
    """A line for each import that a file of `part` must not have."""
    wrong = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        if top == "flaxattn":
            other = rest.partition(".")[0] or "__init__"
            if other not in MAY_IMPORT[part]:
                wrong.append(f"{part} imports {name}, and may import {sorted(MAY_IMPORT[part])}")
        elif top in NOWHERE:
            wrong.append(f"{part} imports {name}, which only tests may")
        elif top in ONLY_TRAIN_AND_DATA and part not in ("train", "data"):
            wrong.append(f"{part} imports {name}, which only train and data may")
        elif part in BASE | {"attention"} and top not in LAYERS_NEED_ONLY:
            wrong.append(f"{part} imports {name}, and may import jax, flax, numpy and scipy only")
    return wrong


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MECHANISMS = list(dict.fromkeys(layer_of(make) for make in ATTENTION.values()))


@pytest.mark.parametrize(
    ("base", "layer"),
    [
        *((Part, layer) for layer in MECHANISMS),
        *((Backbone, network) for network in (ResNet, VGG, InvertedResidualNet)),
    ],
    ids=lambda layer: layer.__name__,
)
def test_what_all_have_in_common_is_taken_by_keyword(base, layer):
    """Dtypes, initialisers and slots come first among the fields and last in a call."""
    parameters = inspect.signature(layer).parameters
    inherited = {field.name for field in dataclasses.fields(base)} - {"parent", "name"}
    assert {parameters[name].kind for name in inherited} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("layer", MECHANISMS, ids=lambda layer: layer.__name__)
def test_the_norm_follows_the_structure(layer):
    structure = [
        name
        for name, parameter in inspect.signature(layer).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY and name not in ("parent", "name")
    ]
    assert "norm" not in structure[:-1]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    assert part_of(path) in MAY_IMPORT, "a new part of the package: give it its place above"
    assert violations(part_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("layers", "from flaxattn.attention import ATTENTION"),
        ("attention", "import flaxattn.models"),
        ("attention", "from flaxattn import models"),
        ("attention", "from flaxattn import ATTENTION"),
        ("attention", "import ml_collections"),
        ("models", "def build():\n    from flaxattn.tasks import classification"),
        ("models", "from flaxattn import weights"),
        ("tasks", "import optax"),
        ("images", "from flaxattn.data import sources"),
        ("data", "from flaxattn.train import state"),
        ("data", "import tensorflow as tf"),
        ("train", "from flaxattn.inspect import cost"),
        ("weights", "import torch.nn as nn"),
        ("export", "from orbax import checkpoint"),
        ("__init__", "from flaxattn.train import loop"),
    ],
)
def test_a_wrong_import_is_found(part, source):
    assert len(violations(part, source)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        (
            "attention",
            "import jax\nfrom flax import linen as nn\nfrom flaxattn.layers.conv import Conv",
        ),
        ("train", "import optax\nfrom flaxattn import data, tasks\nimport grain.python as grain"),
        ("weights", "import numpy as np\nfrom flaxattn.models import MODELS"),
        ("__init__", "from flaxattn import weights\nfrom flaxattn.models import MODELS"),
    ],
)
def test_a_right_import_passes(part, source):
    assert violations(part, source) == []


def test_only_the_experiment_knows_which_tasks_there_are():
    knowing = {
        path.name
        for path in [*(PACKAGE / "train").glob("*.py"), PACKAGE.parent / "train.py"]
        for name in imported(path.read_text())
        if name.startswith("flaxattn.tasks") and name != "flaxattn.tasks.task"
    }
    assert knowing == {"experiment.py"}


def run(code):
    """Standard output of Python in a process of its own, where JAX has not started."""
    settings = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**settings, "JAX_PLATFORMS": "cpu"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# JAX takes a number of CPU devices until its first backend starts, and refuses it from then on.
ASK_FOR_THREE = "import jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"


def test_importing_the_library_touches_no_device():
    assert run(f"import flaxattn; {ASK_FOR_THREE}") == "3"


def test_touching_a_device_would_be_found():
    with pytest.raises(AssertionError, match="before backends are initialized"):
        run(f"import jax; jax.numpy.zeros(()); {ASK_FOR_THREE}")


def test_importing_the_library_loads_no_heavy_package():
    heavy = NOWHERE | ONLY_TRAIN_AND_DATA | {"PIL", "huggingface_hub", "safetensors"}
    code = f"import sys, flaxattn; print(sorted({heavy} & sys.modules.keys()))"
    assert run(code) == "[]"
