"""Whoever lacks an extra gets one sentence with what to type."""

import importlib
import re
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

import flaxattn.data
import flaxattn.train
from flaxattn import InputError, weights
from flaxattn.__main__ import main
from flaxattn.data.coco_masks import covered
from flaxattn.extras import EXTRAS
from flaxattn.images.decoding import decode, image_size
from flaxattn.images.drawing import with_caption
from flaxattn.inspect import overlay
from tests.test_structure import FILES, imported

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

IMAGE = np.zeros((4, 4, 3), np.uint8)
COMPARE = ["compare", "--config", "configs/digits.py", "--attention", "none,se"]
PREDICT = ["predict", "cat.jpg", "--weights", "somebody/network"]
DOORS = {
    "decode": ("hub", "PIL", lambda: decode(b"", channels=3)),
    "image_size": ("hub", "PIL", lambda: image_size("cat.jpg")),
    "with_caption": ("hub", "PIL", lambda: with_caption(IMAGE, "cat")),
    "read": ("hub", "safetensors", lambda: weights.read("w.safetensors")),
    "write": ("hub", "safetensors", lambda: weights.write("new.safetensors", {"w": IMAGE})),
    "fetch": ("hub", "huggingface_hub", lambda: weights.fetch("somebody/network")),
    "predict": ("hub", "huggingface_hub", lambda: main(PREDICT)),
    "overlay": ("hub", "matplotlib", lambda: overlay(IMAGE, IMAGE[..., 0])),
    "covered": ("coco", "pycocotools", lambda: covered([[0] * 6], (4, 4), name="an object")),
    "compare": ("train", "tqdm", lambda: main(COMPARE)),
    "train.py": ("train", "absl", lambda: runpy.run_path(str(ROOT / "train.py"))),
    "flaxattn.data": ("train", "grain", lambda: importlib.reload(flaxattn.data)),
    **{
        f"flaxattn.train without {module}": (
            *("train", module),
            lambda: importlib.reload(flaxattn.train),
        )
        for module in EXTRAS["train"]
    },
}


@pytest.mark.parametrize(("extra", "module", "enter"), DOORS.values(), ids=DOORS)
def test_what_to_install_is_said(extra, module, enter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("w.safetensors").write_bytes(b"\0" * 8)
    monkeypatch.setitem(sys.modules, module, None)
    try:
        assert enter() == 2
        said = capsys.readouterr().err
    except (InputError, SystemExit) as error:
        said = str(error)
    assert said.strip().endswith(f'needs {module}: pip install "flaxattn[{extra}]".')
    assert said.strip().count("\n") == 0


def distributions(requirements):
    names = {re.match(r"[\w-]+", line)[0] for line in requirements}
    return {name.lower().replace("_", "-") for name in names}


def test_an_extra_has_the_modules_of_its_packages():
    of_module = packages_distributions()
    for extra, modules in EXTRAS.items():
        listed = distributions(PROJECT["optional-dependencies"][extra])
        # Several may share a namespace, as orbax-checkpoint does.
        found = [distributions(of_module[module]) & listed for module in modules]
        assert all(found), modules
        assert set().union(*found) == listed


def test_what_the_library_imports_is_declared():
    declared = {name.replace("-", "_") for name in distributions(PROJECT["dependencies"])}
    declared |= {module for modules in EXTRAS.values() for module in modules}
    found = {name.partition(".")[0] for path in FILES for name in imported(path.read_text())}
    assert found - sys.stdlib_module_names - {"flaxattn"} <= declared
