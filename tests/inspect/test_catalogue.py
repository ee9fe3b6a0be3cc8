"""The table of mechanisms says of each what its class says."""

import math

import jax
import jax.numpy as jnp
import pytest

from flaxattn import ATTENTION, create_attention
from flaxattn.inspect.catalogue import markdown, rows

ROWS = rows()


def by_name(name):
    return next(row for row in ROWS if row.name == name)


def test_every_mechanism_has_one_row():
    assert [row.name for row in ROWS] == sorted(ATTENTION)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_complete(row):
    assert row.summary
    assert not row.summary.endswith(".")
    assert row.role in ("recalibrate", "context", "convolution", "head")
    assert row.variants
    assert row.parameters >= 0
    assert bool(row.paper) == bool(row.venue)


@pytest.mark.parametrize(
    ("name", "paper", "venue", "arxiv"),
    [
        ("se", "Squeeze-and-Excitation Networks", "CVPR 2018", "1709.01507"),
        ("cbam", "CBAM: Convolutional Block Attention Module", "ECCV 2018", "1807.06521"),
        (  # cited over two lines, and before a work that has a number
            "simplified_psa",
            "PSANet: Point-wise Spatial Attention Network for Scene Parsing",
            "ECCV 2018",
            "",
        ),
        ("sca_residual", "", "", ""),
    ],
)
def test_the_paper_is_the_first_that_the_docstring_cites(name, paper, venue, arxiv):
    row = by_name(name)
    assert (row.paper, row.venue, row.arxiv) == (paper, venue, arxiv)


def test_a_key_that_stands_for_a_variant_names_it():
    assert by_name("sca_lite").layer == "DualAttention.lite"
    assert by_name("sca_lite").summary == "Article 3's LiteDualAttention, for mobile networks"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("se", 2 * 64 * 4 + 64 + 4),
        ("eca", 3),
        ("spatial", 7 * 7 * 2),
        ("sk", 2 * (9 * 64 * 64 + 64) + 64 * 4 + 4 * 128),
    ],
)
def test_parameters_are_those_of_the_equations(name, parameters):
    assert next(r for r in rows(features=64) if r.name == name).parameters == parameters


def test_parameters_are_those_of_the_initialised_layer():
    variables = create_attention("cbam").init(jax.random.key(0), jnp.ones((1, 4, 4, 256)))
    count = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(variables))
    assert by_name("cbam").parameters == count


def test_the_table_has_as_many_cells_in_every_line():
    lines = markdown().splitlines()
    assert len(lines) == len(ATTENTION) + 2
    assert {line.count("|") for line in lines} == {8}
    assert "| 5 |" in next(line for line in lines if line.startswith("| `eca`"))
