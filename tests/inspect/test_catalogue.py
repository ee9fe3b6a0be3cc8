"""The catalogue says of each mechanism what its class says."""

import inspect
import math

import jax
import jax.numpy as jnp
import pytest

from flaxattn import ATTENTION, create_attention
from flaxattn.__main__ import main
from flaxattn.inspect import catalogue
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
    assert bool(row.variants) != inspect.ismethod(ATTENTION[row.name])
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
        ("sca", "", "", ""),  # its docstring cites what it is not
        ("sca_lite", "", "", ""),  # as its class's does
        ("ceca", "", "", ""),  # its class has a paper
        ("grouped_se", "", "", ""),
        ("spatial_separable", "", "", ""),
    ],
)
def test_the_paper_is_the_first_that_the_docstring_cites(name, paper, venue, arxiv):
    row = by_name(name)
    assert (row.paper, row.venue, row.arxiv) == (paper, venue, arxiv)


def test_a_key_that_stands_for_a_variant_names_it():
    assert by_name("sca_lite").layer == "DualAttention.lite"
    assert by_name("sca_lite").summary == "Article 3's LiteDualAttention, for mobile networks"


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("se", 2 * 256 * 16 + 256 + 16, 2 * 256 * 16),
        ("eca", 5, 5 * 256),
        ("spatial", 98, 98 * 56 * 56),
        ("cbam", 2 * 256 * 16 + 98, 4 * 256 * 16 + 98 * 56 * 56),
    ],
)
def test_costs_are_those_of_the_equations(name, parameters, macs):
    assert catalogue.usual_cost(name) == (parameters, macs)


def test_parameters_are_those_of_the_initialised_layer():
    variables = create_attention("cbam").init(jax.random.key(0), jnp.ones((1, 4, 4, 256)))
    count = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(variables))
    assert catalogue.usual_cost("cbam").parameters == count


def test_the_page_has_a_line_for_each_mechanism_and_variant():
    lines = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert len(lines) == len(ATTENTION) + sum(len(row.variants) for row in ROWS)
    (eca,) = [line for line in lines if line.startswith("| `eca` | `EfficientChannel`")]
    assert "| 5 | 0.00128 |" in eca


@pytest.mark.parametrize(
    ("macs", "shown"),
    [(0, "0"), (1280, "0.00128"), (323712, "0.324"), (8_192_000, "8.19"), (3_699_388_416, "3,699")],
)
def test_multiply_adds_are_shown_with_three_digits(macs, shown):
    assert catalogue.mmacs(macs) == shown


def test_list_shows_every_mechanism(capsys, monkeypatch):
    assert main(["list", "--costs"]) == 0
    (cbam,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cbam ")]
    costs = "8,290", "0.324"
    others = "recalibrate", "article_s2", "ECCV 2018, arXiv:1807.06521"
    assert all(part in cbam for part in (*costs, *others))

    monkeypatch.setattr(catalogue, "cost", None)  # which takes seconds
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[1 : len(ATTENTION) + 1]] == sorted(ATTENTION)
    (cbam,) = [line for line in shown if line.startswith("cbam ")]
    assert all(part in cbam for part in others)


def test_list_and_page_say_how_to_share_weights(capsys):
    assert main(["list"]) == 0
    for text in (capsys.readouterr().out, markdown()):
        for part in ("flaxattn.attention.SharedAttention", "share=True"):
            assert part in text


@pytest.mark.parametrize("name", ATTENTION)
def test_describe_shows_everything_about_one(name, capsys):
    assert main(["describe", name]) == 0
    shown = capsys.readouterr().out
    row = by_name(name)
    assert row.layer in shown
    assert row.paper in " ".join(shown.split())
    assert f"{catalogue.usual_cost(row.name).parameters:,}" in shown
    for variant, _ in row.variants:
        assert f"\n{variant} " in shown


def test_describe_takes_other_sizes(capsys):
    assert main(["describe", "se", "--features", "64", "--size", "7"]) == 0
    assert "(1, 1, 64, 4)" in capsys.readouterr().out


def test_a_variant_that_refuses_the_map_has_no_cost(capsys):
    assert main(["describe", "generalized", "--features", "8"]) == 0
    assert "\nmmcv              -      -  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["describe", "cbma"], "unknown attention 'cbma': did you mean cbam"),
        (["describe", "psa"], "'psa' could be any of three papers' layers"),
        (["describe", "se", "--features", "8"], "reduction=16 leaves no channel of 8"),
        (["describe", "se", "--features", "0"], "features=0 must be 1 to"),
        (["describe", "se", "--size", "-1"], "size=-1 must be 1 to"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
