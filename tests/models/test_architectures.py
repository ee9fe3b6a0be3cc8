"""The tables of docs/weights.md are as measured, and as timm publishes."""

import pytest

from flaxattn import MODELS
from tests.models.test_regnet import LARGEST
from tests.models.test_resnet import LOGITS
from tools.architectures import PAGE, families, families_table, section

OWN = {"resnet10"}  # of no other library


def test_every_architecture_is_within_the_bounds():
    rows = section(PAGE.read_text(), "architectures").splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [name for name, *_ in cells] == sorted(MODELS.keys() - OWN)
    for name, *_, first, second in cells:
        assert float(first) <= LOGITS["float32"], name
        assert (name == LARGEST and not second) or float(second) <= LOGITS["float64"], name


@pytest.mark.slow
def test_the_families_of_pretrained_names_are_fresh():
    assert section(PAGE.read_text(), "families") == families_table()


@pytest.mark.slow
def test_at_least_175_of_the_425_pretrained_names_with_attention_load():
    names, loaded = families()
    assert names.total() == 425
    assert loaded.total() >= 175
