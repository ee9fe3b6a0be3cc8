"""The tables of docs/weights.md hold what timm publishes."""

import pytest

from tests.models.architectures import PAGE, families, families_table, section


@pytest.mark.slow
def test_the_families_of_pretrained_names_are_fresh():
    assert section(PAGE.read_text(), "families") == families_table()


@pytest.mark.slow
def test_at_least_175_of_the_425_pretrained_names_with_attention_load():
    names, loaded = families()
    assert names.total() == 425
    assert loaded.total() >= 175
