"""All attention mechanisms, read off the classes themselves: as a list, a page, or one in full."""

import dataclasses
import inspect
import re
import sys
import textwrap
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from flaxattn.attention import ATTENTION, create_attention, require_name
from flaxattn.attention.mechanism import declared, layer_of, required_fields
from flaxattn.errors import InputError, require_range
from flaxattn.inspect.cost import Cost, cost
from flaxattn.inspect.table import aligned, mmacs
from flaxattn.layers.abstract_variables import abstract_variables

FEATURES = 256
SIZE = 56
LARGEST = 2**30  # of any axis

# The first work that a docstring cites: "Title", VENUE YEAR, and its arXiv number if it has one.
_CITATION = re.compile(r'"([^"]+)", ([^".]*? \d{4})(?:, arXiv:(\d{4}\.\d{4,5}))?')
# A docstring with these words has no paper of its own: the works that it cites are others'.
_NO_PAPER = re.compile(r"\bno paper\b")

_PAGE = """# Mechanisms

Written by `python -m flaxattn list --markdown`, from the classes themselves. Parameters and
millions of multiply-adds (MMACs) are those of the defaults for {features} channels in and out on a
map of {size}x{size}, batch 1. XLA's convolutions and matrix products are counted. So a resize or an
adaptive pool counts, and a depthwise convolution that is written as shifted products does not.
`python -m flaxattn describe NAME` shows one mechanism in full, and
`flaxattn.create_attention(NAME, variant=VARIANT)` makes it.

{sharing}

{table}

## Variants

A variant is a set of field values with which the class equals a source's own code. With equal
weights any two variants of a mechanism differ, unless one is the default. Their weights load with
`flaxattn.weights.load`.

{variants}"""


# Sharing is not a mechanism, so the table has no row for it.
_SHARING = (
    "One set of weights can serve several maps, such as the levels of a pyramid, by "
    "`flaxattn.attention.SharedAttention`, and equally wide blocks of a network by `share=True` in "
    "their slot."
)


class Row(NamedTuple):
    """One mechanism.

    Fields:
        name: its key in ATTENTION.
        layer: the class's name, with the variant's where the key stands for one.
        summary: what it is, in a line.
        role: "recalibrate", "context", "convolution" or "head".
        variants: (name, what it is in a line) of the class, if the key stands for the class.
        paper: the title of the first work its docstring cites, "" if it cites none.
        venue: where and when that work appeared.
        arxiv: its arXiv number, "" if none is given.
    """

    name: str
    layer: str
    summary: str
    role: str
    variants: tuple[tuple[str, str], ...]
    paper: str
    venue: str
    arxiv: str

    @property
    def source(self) -> str:
        """Where the mechanism appeared, with its arXiv number."""
        return f"{self.venue}, arXiv:{self.arxiv}" if self.arxiv else self.venue


def rows() -> list[Row]:
    """A row for each mechanism, by name."""
    return [_row(name) for name in sorted(ATTENTION)]


def usual_cost(name: str) -> Cost:
    """Of the layer with its defaults, for FEATURES channels, on a map of SIZE x SIZE."""
    return cost(create_attention(name, **_required(name, FEATURES)), (1, SIZE, SIZE, FEATURES))


def text(*, costs: bool = False) -> str:
    """The rows as aligned columns for a terminal, widest column last; counting costs takes long."""
    lines: list[tuple[str, ...]] = [("name", "role", "variants", "what it is")]
    for row in rows():
        variants = ",".join(name for name, _ in row.variants)
        summary = f"{row.summary} ({row.source})" if row.source else row.summary
        lines.append((row.name, row.role, variants, summary))
    end = f"{len(lines) - 1} mechanisms."
    if costs:
        counted = [(f"{c.parameters:,}", mmacs(c.macs)) for c in map(usual_cost, sorted(ATTENTION))]
        both = zip(lines, [("parameters", "MMACs"), *counted], strict=True)
        lines = [(*line[:2], *cells, *line[2:]) for line, cells in both]
        end = f"{len(lines) - 1} mechanisms, at {FEATURES} channels on {SIZE}x{SIZE}."
    columns = aligned(lines, right=(2, 3) if costs else ())
    return "\n".join([*columns, "", end, _SHARING.replace("`", "")])


def markdown() -> str:
    """The page docs/mechanisms.md."""
    table = [
        "| name | class | what it is | role | source | parameters | MMACs |",
        "|---|---|---|---|---|---:|---:|",
    ]
    variants = ["| name | variant | what it is |", "|---|---|---|"]
    for row in rows():
        spent = usual_cost(row.name)
        cells = (
            f"`{row.name}`",
            f"`{row.layer}`",
            row.summary,
            row.role,
            _link(row),
            f"{spent.parameters:,}",
            mmacs(spent.macs),
        )
        table.append("| " + " | ".join(cells) + " |")
        variants += [f"| `{row.name}` | `{name}` | {what} |" for name, what in row.variants]
    return _PAGE.format(
        features=FEATURES,
        size=SIZE,
        sharing=textwrap.fill(_SHARING, 100),
        table="\n".join(table),
        variants="\n".join(variants),
    )


def describe(name: str, *, features: int = FEATURES, size: int = SIZE) -> str:
    """All about one mechanism: its docstring, fields, variants, parameters and cost.

    A variant that needs other fields for such a map has "-" for its cost.

    Raises InputError for an unknown name, for features and sizes that no map has, and where the
    defaults refuse such a map.
    """
    require_name(name)
    for argument, value in (("features", features), ("size", size)):
        require_range(argument, value, 1, LARGEST)
    row = _row(name)
    made, kind = _made(name)
    layer = create_attention(name, **_required(name, features))
    shape = (1, size, size, features)
    blocks = [
        f"{name}: flaxattn.attention.{row.layer}, role {row.role}",
        inspect.cleandoc(kind.__doc__),
    ]
    if made is not kind:
        blocks.append(f"{row.layer}: {inspect.cleandoc(made.__doc__)}")
    lines = [
        ("variant", "parameters", "MMACs", "what it is"),
        ("default", *_costs(layer, shape), ""),
    ]
    for variant, summary in row.variants:
        other = create_attention(name, variant=variant, **_required(name, features))
        try:
            costs = _costs(other, shape)
        except InputError:
            costs = "-", "-"
        lines.append((variant, *costs, summary))
    blocks.append(
        f"At {features} channels on {size}x{size}:\n\n" + "\n".join(aligned(lines, right=(1, 2)))
    )
    fields = [
        (field.name, _shown(getattr(layer, field.name)))
        for field in dataclasses.fields(kind)
        if field.name not in ("parent", "name")
    ]
    blocks.append("Fields:\n\n" + "\n".join(aligned(fields)))
    blocks.append("Parameters:\n\n" + "\n".join(aligned(_parameters(layer, shape))))
    if sources := declared(layer, "namings"):
        blocks.append(f"Weights load from: {', '.join(sources)}.")
    return "\n\n".join(blocks)


def _row(name: str) -> Row:
    made, layer = _made(name)
    documented: Any = made if made is not layer else sys.modules[layer.__module__]
    paper, venue, arxiv = _cited(made.__doc__) or _cited(layer.__doc__) or ("", "", "")
    names = layer.variants if made is layer else ()
    return Row(
        name=name,
        layer=made.__qualname__,
        summary=_first_line(documented),
        role=layer.role,
        variants=tuple((v, _first_line(getattr(layer, v))) for v in names),
        paper=paper,
        venue=venue,
        arxiv=arxiv,
    )


def _cited(docstring: str) -> tuple[str, ...] | None:
    """Title, venue and number of the first work cited: empty for "no paper", None without any."""
    plain = " ".join(docstring.split())
    if _NO_PAPER.search(plain):
        return "", "", ""
    cited = _CITATION.search(plain)
    return cited.groups(default="") if cited else None


def _made(name: str) -> tuple[Any, Any]:
    """What ATTENTION has under `name`, and the class behind it."""
    made: Any = ATTENTION[name]
    return made, layer_of(made)


def _required(name: str, features: int) -> dict[str, Any]:
    """The fields without a default: the channels of the output."""
    _, layer = _made(name)
    return {"features": features} if "features" in required_fields(layer) else {}


def _first_line(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__).partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _costs(layer: nn.Module, shape: tuple[int, ...]) -> tuple[str, str]:
    spent = cost(layer, shape)
    return f"{spent.parameters:,}", mmacs(spent.macs)


def _parameters(layer: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    variables = abstract_variables(layer, shape)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), str(array.shape))
        for path, array in jax.tree.leaves_with_path(variables)
    ]


def _shown(value: Any) -> str:
    """A field's default; of a function, its name."""
    return getattr(value, "__name__", "a function") if callable(value) else repr(value)


def _link(row: Row) -> str:
    cited = f"{row.paper}, {row.venue}" if row.paper else ""
    return f"[{cited}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else cited
