"""What is installed is what stands here."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import flaxattn

ROOT = Path(__file__).parent.parent
# What a tree has in which somebody has worked.
USED = ("runs/se/config.json", ".cache/x", "build/lib/x.py", "tests/__pycache__/x.pyc")


def test_the_version_is_said_alike_everywhere():
    (newest, *_) = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert flaxattn.__version__ == newest == cited


def build(kind, folder):
    """The path of what setuptools makes in `folder` of what is there: a "wheel" or an "sdist"."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("there is no repository to package")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return {name for name in listing.stdout.decode().splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def source(tracked, tmp_path_factory):
    """An unpacked source distribution."""
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in USED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(build("sdist", tree)) as archive:
        archive.extractall(unpacked, filter="data")
    return unpacked / f"flaxattn-{flaxattn.__version__}"


def test_the_source_distribution_has_what_is_tracked_and_no_more(source, tracked):
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    made = {name for name in found if name.startswith("flaxattn.egg-info/")}
    assert found - made - {"PKG-INFO", "setup.cfg"} == {n for n in tracked if not n.startswith(".")}


@pytest.fixture(scope="module")
def wheel(source):
    return build("wheel", source)


def test_the_wheel_has_every_module_and_says_that_it_is_typed(wheel, tracked):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("flaxattn/")}
    assert "flaxattn/py.typed" in packed
    assert packed == {name for name in tracked if name.startswith("flaxattn/")}


@pytest.mark.slow
def test_what_is_installed_works_elsewhere(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    for arguments, said in (
        (["-m", "flaxattn", "--version"], f"flaxattn {flaxattn.__version__}"),
        (["-m", "flaxattn", "list", "--models", "resnet50d"], "resnet50d"),
        (["-c", "import flaxattn; print(flaxattn.__file__)"], str(site / "flaxattn")),
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env={"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
            text=True,
        )
        assert said in done.stdout
