"""The tables of docs/weights.md hold every architecture, and what timm publishes."""

import re

import pytest

from flaxattn import MODELS
from tests.models.architectures import PAGE, families, families_table, section
from tests.models.test_regnet import LARGEST
from tests.models.test_resnet import LOGITS

# Ours alone: a ResNet of one block in each stage, for tests and first steps.
OWN = {"resnet10"}


def test_every_architecture_has_its_errors_within_the_bounds():
    rows = section(PAGE.read_text(), "architectures").splitlines()[2:]
    cells = [re.split(r" *\| *", row.strip("| ")) for row in rows]
    assert [name for name, *_ in cells] == sorted(MODELS.keys() - OWN)
    for name, *_, first, second in cells:
        assert float(first) <= LOGITS["float32"], name
        assert name == LARGEST or float(second) <= LOGITS["float64"], name


@pytest.mark.slow
def test_the_families_of_pretrained_names_are_fresh():
    assert section(PAGE.read_text(), "families") == families_table()


@pytest.mark.slow
def test_at_least_175_of_the_425_pretrained_names_with_attention_load():
    names, loaded = families()
    assert names.total() == 425
    assert loaded.total() >= 175
