"""All attention mechanisms as a table, read off the classes themselves.

python -m flaxattn.inspect.catalogue
"""

import inspect
import math
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention import ATTENTION, create_attention

# The first work that a docstring cites: "Title", VENUE YEAR, and its arXiv number if it has one.
_CITATION = re.compile(r'"([^"]+)", ([^".]*? \d{4})(?:, arXiv:(\d{4}\.\d{4,5}))?')


class Row(NamedTuple):
    """One mechanism.

    Fields:
        name: its key in ATTENTION.
        layer: the class's name, with the variant's where the key stands for one.
        summary: what it is, in a line.
        role: "recalibrate", "context", "convolution" or "head".
        variants: of the class.
        paper: the title of the first work its docstring cites, "" if it cites none.
        venue: where and when that appeared.
        arxiv: that work's number, "" if none is given.
        parameters: of the layer for the features asked for, with its defaults.
    """

    name: str
    layer: str
    summary: str
    role: str
    variants: tuple[str, ...]
    paper: str
    venue: str
    arxiv: str
    parameters: int


def rows(*, features: int = 256) -> list[Row]:
    """A row for each mechanism, by name; `parameters` for `features` channels in and out."""
    return [_row(name, features) for name in sorted(ATTENTION)]


def markdown(*, features: int = 256) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"| name | class | what it is | role | variants | source | parameters at C={features} |",
        "|---|---|---|---|---|---|---:|",
    ]
    for row in rows(features=features):
        variants = ", ".join(f"`{variant}`" for variant in row.variants)
        cells = [
            f"`{row.name}`",
            f"`{row.layer}`",
            row.summary,
            row.role,
            variants,
            _paper(row),
            f"{row.parameters:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(name: str, features: int) -> Row:
    made: Any = ATTENTION[name]
    is_variant = inspect.ismethod(made)
    layer: Any = made.__self__ if is_variant else made
    documented: Any = made if is_variant else sys.modules[layer.__module__]
    cited = _CITATION.search(" ".join(layer.__doc__.split()))
    paper, venue, arxiv = cited.groups(default="") if cited else ("", "", "")
    return Row(
        name=name,
        layer=made.__qualname__,
        summary=documented.__doc__.partition("\n")[0].removesuffix("."),
        role=layer.role,
        variants=layer.variants,
        paper=paper,
        venue=venue,
        arxiv=arxiv,
        parameters=_parameters(name, layer.role, features),
    )


def _parameters(name: str, role: str, features: int) -> int:
    given: dict[str, Any] = {"features": features} if role in ("convolution", "head") else {}
    layer = create_attention(name, **given)
    x = jax.ShapeDtypeStruct((1, 16, 16, features), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.eval_shape(lambda: jax.random.key(0)), x)
    return sum(math.prod(array.shape) for array in jax.tree.leaves(variables["params"]))


def _paper(row: Row) -> str:
    text = f"{row.paper}, {row.venue}" if row.paper else ""
    return f"[{text}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else text


if __name__ == "__main__":
    print(markdown())
