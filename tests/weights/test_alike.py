"""Variants of a mechanism whose weights do not say which of them they are of."""

import pytest

from flaxattn import InputError, weights
from flaxattn.attention import ChannelAffinity, SelfAttention, SpatialAttention
from tools import alike
from tools.architectures import PAGE, section


@pytest.mark.slow
def test_the_page_has_all_of_them():
    assert section(PAGE.read_text(), "alike") == alike.table()


@pytest.mark.parametrize(
    ("cls", "row"),
    [
        (ChannelAffinity, "| ChannelAffinity | `default`, `paper`; `official` | `similar` |"),
        (SelfAttention, None),
    ],
)
def test_a_row_of_the_page(cls, row):
    """Variants of other tensors, and those that compute the same, make none."""
    assert alike.rows(cls) == ([row] if row else [])
    assert (f"| {cls.__name__} |" in section(PAGE.read_text(), "alike")) == bool(row)


def test_all_variants_that_fit_are_named():
    layer, x = SpatialAttention.timm(), (1, 8, 8, 16)
    state = weights.to_torch(alike.random_variables(weights.abstract_variables(layer, x)))
    both = r"; SpatialAttention\.official\(\.\.\.\) or SpatialAttention\.timm\(\.\.\.\) has exactly"
    with pytest.raises(InputError, match=rf"{both} these tensors, and which of them"):
        weights.load(SpatialAttention(), state, x)
