"""The Colab notebook, from its first to its last cell, in a kernel of this Python."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from configs.digits import SLOTS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / "colab" / "quickstart.ipynb", as_version=4)


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    """What the kernel inherits: few epochs, two devices, and all it writes in one place."""
    monkeypatch.setenv("FLAXATTN_NOTEBOOK_EPOCHS", "3")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    jupyter = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    for variable in (*jupyter, "TFDS_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert (cell.outputs, cell.execution_count) == ([], None)


def test_every_mechanism_it_offers_is_an_experiment(notebook):
    line = re.search(r'MECHANISM = "(\w+)"  # or (.+)', code_cells(notebook)[0].source)
    offered = {line[1], *line[2].split(", ")}
    assert len(offered) > 2
    assert offered <= SLOTS.keys()


def test_it_is_copied_from_where_the_readme_opens_it(notebook):
    source = "\n".join(cell.source for cell in notebook.cells)
    copied = re.findall(r"https://github\.com/(\S+)", source)
    readme = (REPOSITORY / "README.md").read_text()
    opened = re.findall(r"colab\.research\.google\.com/github/([^)]+)", readme)
    assert len(copied) == 1, "one place to change"
    assert opened == [f"{copied[0]}/blob/main/colab/quickstart.ipynb"]


@pytest.mark.usefixtures("surroundings")
def test_it_runs_from_the_first_to_the_last_cell(notebook):
    resources = {"metadata": {"path": str(REPOSITORY)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()

    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    (install,) = [cell for cell in cells if "%pip install" in cell.source]
    assert install.outputs == [], "nothing is installed in a copy of the repository"

    text = "".join(map(printed, cells))
    assert "This notebook runs on 2 x CPU (cpu)" in text
    accuracies = dict(re.findall(r"^(\w+): ([\d.]+)% of 359 test digits are right$", text, re.M))
    assert accuracies.keys() == {"se", "cbam"}
    assert min(map(float, accuracies.values())) > 50, "it has learnt something in three epochs"
    assert "No claim" in text
    images = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(images) == 3, "the curves, and the attention of both networks"
