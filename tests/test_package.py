"""What is installed is what stands here."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import flaxattn

ROOT = Path(__file__).parent.parent


def test_the_wheel_has_every_module_and_says_that_it_is_typed(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "flaxattn", tmp_path / "flaxattn", ignore=ignored)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"flaxattn-{flaxattn.__version__}-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("flaxattn/")}
    present = {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "flaxattn").rglob("*.*")}
    assert "flaxattn/py.typed" in packed
    assert packed == present
