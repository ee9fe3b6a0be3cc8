"""The count on a TPU: what a program costs there may not grow unseen."""

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest

from benchmarks.tpu import BUDGET, in_process, layer_rows, network_rows, show_layer
from flaxattn.errors import InputError
from flaxattn.inspect import compiled

GROWTH = 1.02
COUNTS = json.loads(BUDGET.read_text())


def test_collectives_are_counted_once_when_they_are_asynchronous():
    program = """
      %a = f32[8] all-reduce(%x), replica_groups={}
      %b = (f32[8], f32[8]) all-reduce-start(%y), replica_groups={}
      %c = f32[8] all-reduce-done(%b)
      %d = f32[8] all-gather(%x), dimensions={0}
    """
    assert compiled.collectives(program) == {"all-reduce": 2, "all-gather": 1}


def test_without_the_compiler_a_sentence_says_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(compiled.topologies, "get_topology_desc", missing)
    with pytest.raises(InputError, match=r"flaxattn\[tpu-check\]"):
        compiled.tpu_devices()


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "tpu-check" in done.stdout


def test_a_row_of_the_table():
    ours = {"bytes": 5 * 2 * 1000, "temporaries": 4000, "seconds": 2.4}
    plain = {"bytes": 4 * 2 * 1000, "temporaries": 0, "seconds": 1.0}
    row = show_layer("se,1x10x10x10", ours, plain)
    assert row == "| se, 1x10x10x10 | 1.00 | 0.80 | 1.25 | 2.0 | 0.0 | 2 |"


def test_the_budget_has_every_mechanism():
    there = {key.removeprefix("layers ") for key in COUNTS["counts"] if key.startswith("layers ")}
    assert there == set(layer_rows(None))
    assert {f"networks {row}" for row in network_rows(None)} <= set(COUNTS["counts"])


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(COUNTS["counts"]))
def test_nothing_costs_more_than_its_budget(key):
    if find_spec("libtpu") is None:
        pytest.skip('the TPU compiler is missing: pip install "flaxattn[tpu-check]"')
    assert version("libtpu") == COUNTS["libtpu"], "the budget is another compiler's: write it anew"
    found = in_process(*key.split(" ", 1), 3000)
    budget = COUNTS["counts"][key]
    assert found["bytes"] <= GROWTH * budget["bytes"]
    assert found["flops"] <= GROWTH * budget["flops"]
    assert found["temporaries"] <= GROWTH * budget["temporaries"] + 2**20
    assert sum(found["collectives"].values()) <= sum(budget["collectives"].values())
