"""The Colab notebooks: how they are committed, and each from its first to its last cell."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from configs.digits import SLOTS
from flaxattn import ATTENTION

REPOSITORY = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (REPOSITORY / "colab").glob("*.ipynb"))


def read(name):
    return nbformat.read(REPOSITORY / "colab" / f"{name}.ipynb", as_version=4)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return read(name)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def install_cell(notebook):
    (cell,) = [cell for cell in code_cells(notebook) if "%pip install" in cell.source]
    return cell


def source_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def test_it_is_committed_without_outputs(name, notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.colab.name == f"{name}.ipynb"
    for cell in code_cells(notebook):
        assert (cell.outputs, cell.execution_count) == ([], None)


def test_all_are_installed_alike(notebook):
    quickstart = read("quickstart")
    assert install_cell(notebook).source == install_cell(quickstart).source
    (devices,) = [c.source for c in code_cells(quickstart) if "require_platform(" in c.source]
    assert devices in [cell.source for cell in code_cells(notebook)]


def test_it_is_copied_from_where_the_readmes_open_it(name, notebook):
    (copied,) = re.findall(r"git clone .*https://github\.com/(\S+)", source_of(notebook))
    for readme in ("README.md", "README.zh.md"):
        text = (REPOSITORY / readme).read_text()
        opened = re.findall(r"colab\.research\.google\.com/github/([^)]+)", text)
        assert f"{copied}/blob/main/colab/{name}.ipynb" in opened
        assert f"(colab/{name}.ipynb)" in text


def test_what_it_links_to_is_there(notebook):
    for path in re.findall(
        r"github\.com/flaxattn/flaxattn/blob/main/([^)#]+)", source_of(notebook)
    ):
        assert (REPOSITORY / path).exists(), path


def test_every_mechanism_that_the_quickstart_offers_is_an_experiment():
    line = re.search(r'MECHANISM = "(\w+)"  # or (.+)', source_of(read("quickstart")))
    offered = {line[1], *line[2].split(", ")}
    assert len(offered) > 2
    assert offered <= SLOTS.keys()


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a notebook for so many epochs, and returns what it has printed and drawn.

    The kernel inherits few epochs, two devices, and one place for all it writes. It has JAX's own
    rules for promotion, as its readers have.
    """
    jupyter = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    for variable in (*jupyter, "TFDS_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    for variable in ("JAX_NUMPY_RANK_PROMOTION", "JAX_NUMPY_DTYPE_PROMOTION"):
        monkeypatch.delenv(variable)

    def run(name, *, epochs, devices=2):
        monkeypatch.setenv("FLAXATTN_NOTEBOOK_EPOCHS", str(epochs))
        flags = f"--xla_force_host_platform_device_count={devices}" if devices else ""
        monkeypatch.setenv("XLA_FLAGS", flags)
        notebook = read(name)
        resources = {"metadata": {"path": str(REPOSITORY)}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()

        cells = code_cells(notebook)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert install_cell(notebook).outputs == [], "nothing is installed in a copy"
        outputs = [output for cell in cells for output in cell.outputs]
        text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
        assert f"This notebook runs on {devices or 4} x CPU (cpu)" in text
        return text, sum("image/png" in output.get("data", {}) for output in outputs)

    return run


def test_quickstart(run):
    text, pictures = run("quickstart", epochs=3)
    accuracies = dict(re.findall(r"^(\w+): ([\d.]+)% of 359 test digits are right$", text, re.M))
    assert accuracies.keys() == {"se", "cbam"}
    assert min(map(float, accuracies.values())) > 50, "it has learnt something in three epochs"
    assert "No claim" in text
    assert pictures == 3, "the curves, and the attention of both networks"


@pytest.mark.slow
def test_pretrained(run):
    text, pictures = run("pretrained", epochs=10)
    assert "160 images to train on, 200 to test; ('circle', 'hexagon'," in text
    stand_in = re.search(r"the stand-in finds ([\d.]+)% of 2000 digits", text)
    assert float(stand_in[1]) > 60
    moved = dict(re.findall(r"^se (.*): logits move by (\S+) of the largest$", text, re.M))
    assert float(moved["grafted"]) < 1e-5 < 0.1 < float(moved["not grafted"])
    before, after = re.findall(r"(?:before|after): ([\d.]+)% of 200 test images are right", text)
    assert 15 < float(before) < 35, "a new head guesses"
    assert float(after) > 35
    assert re.search(r"without the weights: [\d.]+%; with them: " + re.escape(after), text)
    gates = re.findall(r"^layer[123]_0/se: ([\d.]+) to ([\d.]+)$", text, re.M)
    assert len(gates) == 3
    assert all(float(least) < 0.5 < float(most) for least, most in gates)
    assert pictures == 3, "the images, the curves and the predictions"


@pytest.mark.slow
def test_mechanisms(run):
    text, pictures = run("mechanisms", epochs=0.1)
    assert f"{len(ATTENTION)} mechanisms" in text
    forms = dict(re.findall(r"'(\w+)': (\d+)", text))
    assert forms.keys() == {"channel", "position", "pairs", "else"}
    assert sum(map(int, forms.values())) > len(ATTENTION), "some have several parts"
    found = re.findall(r"^(\w+): mAP 0\.\d+ on 500 test pictures$", text, re.M)
    assert found == ["none", "cbam", "self_attention"]
    assert pictures == 7


@pytest.mark.slow
def test_devices(run):
    """Which asks for four devices itself."""
    text, pictures = run("devices", epochs=3, devices=None)
    assert "images (64, 8, 8, 1) on each device (16, 8, 8, 1)" in text
    assert "kernel (128, 10) on each device (128, 10)" in text
    assert "refused: batch_size=65 is not divisible by the 4 devices" in text
    assert re.search(r"in one training step: .*'all-reduce': \d", text)
    differences = [float(found) for found in re.findall(r"a difference of (\S+)", text)]
    assert differences[0] < 1e-5
    assert max(differences) < 0.05
    assert [float(n) for n in re.findall(r"4 x cpu, batches of (\d+)", text)] == [64, 256]
    (right,) = re.findall(r"([\d.]+)% of 359 test digits are right", text)
    assert float(right) > 50
    assert pictures == 1


@pytest.mark.slow
def test_nnx(run):
    text, pictures = run("nnx", epochs=4)
    assert "in (2, 8, 8, 32) out (2, 8, 8, 32)" in text
    assert "refused: train=True moves running statistics" in text
    right = re.findall(r"loss \S+ to \S+; (\d+) of 359 test digits right", text)
    assert len(right) == 2, "with both mechanisms"
    assert min(map(int, right)) > 180
    assert "8 of 8 running statistics have moved in training" in text
    assert "8 of 8 are the same after an evaluation" in text
    (difference,) = re.findall(r"logits differ by (\S+)", text)
    assert float(difference) < 1e-4
    assert "the loaded network computes the same logits: True" in text
    assert "SpatialGate.spatial.conv.weight (1, 2, 7, 7)" in text
    assert pictures == 1


@pytest.mark.slow
def test_detection(run):
    text, pictures = run("detection", epochs=0.1, devices=1)
    assert "<name>2</name>" in text
    counts = re.findall(r"^(\w+) +([\d,]+) parameters$", text, re.M)
    assert [name for name, _ in counts] == ["none", "se", "eca", "cbam", "coordinate"]
    plain, *others = (int(count.replace(",", "")) for _, count in counts)
    assert plain < min(others) < 1.01 * plain
    assert re.search(r"^mAP 0\.\d+ on 60 test pictures, with cbam$", text, re.M)
    objects = [int(n) for n in re.findall(r"(\d+) objects in 60 pictures", text)]
    assert objects == sorted(objects, reverse=True)
    for level, side in enumerate((32, 16, 8)):
        assert f"attention_blocks_{level}/cbam/spatial ({side}, {side}, 1): " in text
    assert pictures == 4, "two evaluations, what is found, and the attention"
