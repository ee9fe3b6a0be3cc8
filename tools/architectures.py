"""Writes the tables of docs/weights.md: python -m tools.architectures reports/logits*.xml

The errors are those that the tests of logits have measured:

    python -m pytest -m slow tests/models -k test_logits --junitxml reports/logits.xml
"""

import ast
import functools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import jax
import torch

from flaxattn import MODELS, create_model
from flaxattn.layers.abstract_variables import abstract_variables
from tests.torch_reference.torchvision_shim import timm

PAGE = Path(__file__).parents[1] / "docs" / "weights.md"
DTYPES = ("float32", "float64")

# timm's classes of attention in convolutional networks.
ATTENTION = {
    "BatNonLocalAttn",
    "BottleneckAttn",
    "CbamModule",
    "CecaModule",
    "ChannelAttn",
    "CoordAttn",
    "EcaModule",
    "EffectiveSEModule",
    "EfficientLocalAttn",
    "GatherExcite",
    "GlobalContext",
    "HaloAttn",
    "LambdaLayer",
    "LightCbamModule",
    "NonLocalAttn",
    "SEModule",
    "SEWithNorm",
    "SelectiveKernel",
    "SimpleCoordAttn",
    "SplitAttn",
    "SqueezeExcite",
    "StripAttn",
}


def measured(reports: Iterable[str]) -> Mapping[tuple[str, str], float]:
    """{(name, dtype): the largest error} of the tests of logits in junit files."""
    largest: defaultdict[tuple[str, str], float] = defaultdict(float)
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            if not case.attrib["name"].startswith("test_logits"):
                continue
            if case.find("failure") is not None or case.find("error") is not None:
                raise SystemExit(f"{case.attrib['name']} in {report} has failed.")
            for entry in case.iter("property"):
                name, quantity, error, _ = ast.literal_eval(entry.attrib["value"])
                key = (name, quantity.removeprefix("logits "))
                largest[key] = max(largest[key], error)
    return largest


def parameters(name: str) -> int:
    params = abstract_variables(create_model(name), (1, 224, 224, 3))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def errors_table(errors: Mapping[tuple[str, str], float]) -> str:
    lines = [
        "| architecture | network | parameters | float32 | float64 |",
        "|---|---|---:|---|---|",
    ]
    for name in sorted({name for name, _ in errors} & MODELS.keys()):
        cells = [f"{errors[name, d]:.1e}" if (name, d) in errors else "" for d in DTYPES]
        network = type(create_model(name)).__name__
        lines.append(f"| {name} | {network} | {parameters(name):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


@functools.cache
def families() -> tuple[Counter[str], Counter[str]]:
    """How many of timm's pretrained names with attention there are, and load, by its class."""
    classes: dict[str, str | None] = {}
    names: Counter[str] = Counter()
    loaded: Counter[str] = Counter()
    for name in timm.list_models(pretrained=True):
        architecture = name.split(".")[0]
        if architecture not in classes:
            with torch.device("meta"):
                network = timm.create_model(architecture)
            inside = {type(module).__name__ for module in network.modules()}
            classes[architecture] = type(network).__name__ if inside & ATTENTION else None
        family = classes[architecture]
        if family is not None:
            names[family] += 1
            loaded[family] += architecture in MODELS
    return names, loaded


def families_table() -> str:
    names, loaded = families()
    lines = ["| timm's class | names with attention | load |", "|---|---:|---:|"]
    for family, count in sorted(names.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"| {family} | {count} | {loaded[family]} |")
    lines.append(f"| all | {names.total()} | {loaded.total()} |")
    return "\n".join(lines)


def section(page: str, mark: str) -> str:
    """What stands between `<!-- mark -->` and `<!-- /mark -->`."""
    (found,) = re.findall(rf"<!-- {mark} -->\n(.*?)\n?<!-- /{mark} -->", page, re.S)
    return found


def with_section(page: str, mark: str, text: str) -> str:
    before, after = page.split(f"<!-- {mark} -->\n")[0], page.split(f"<!-- /{mark} -->")[1]
    return f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}"


if __name__ == "__main__":
    tables = {
        "architectures": errors_table(measured(sys.argv[1:])),
        "families": families_table(),
    }
    page = PAGE.read_text()
    for mark, table in tables.items():
        page = with_section(page, mark, table)
    PAGE.write_text(page)
