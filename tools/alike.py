"""Prints the table of variants with equal tensors in docs/weights.md: python -m tools.alike"""

import contextlib
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn import ATTENTION, InputError
from flaxattn.attention.mechanism import declared, layer_of, required_fields
from flaxattn.layers.abstract_variables import abstract_variables

FEATURES = 128
SIZES = ((8, 8), (9, 9))  # some mechanisms refuse one of them
DEFAULT = "default"

Variants = dict[str, nn.Module]


def table() -> str:
    """A line for each mechanism whose variants share their tensors and compute different things."""
    classes = sorted({layer_of(make) for make in ATTENTION.values()}, key=lambda c: c.__name__)
    lines = ["| mechanism | variants | differ in |", "|---|---|---|"]
    return "\n".join(lines + [row for cls in classes for row in rows(cls)])


def rows(cls: type[nn.Module]) -> list[str]:
    """Those of one class, one for each tree of tensors."""
    found = []
    for x, variants in with_the_same_tensors(cls):
        same = by_function(variants, x)
        if len(same) > 1:
            kinds = "; ".join(", ".join(f"`{name}`" for name in names) for names in same)
            first = [variants[names[0]] for names in same]
            fields = ", ".join(f"`{field}`" for field in differing(first, x))
            found.append(f"| {cls.__name__} | {kinds} | {fields} |")
    return found


def with_the_same_tensors(cls: type[nn.Module]) -> Iterator[tuple[np.ndarray, Variants]]:
    """The variants of a class with others of the same tree of shapes, and a map for them."""
    required = dict.fromkeys(required_fields(cls), FEATURES)
    makers = {DEFAULT: cls} | {name: getattr(cls, name) for name in declared(cls, "variants")}
    rng = np.random.default_rng(0)
    trees: defaultdict[Hashable, dict[str, nn.Module]] = defaultdict(dict)
    maps: dict[Hashable, np.ndarray] = {}
    for name, make in makers.items():
        layer = make(**required)
        for size in SIZES:
            x = rng.normal(size=(2, *size, FEATURES)).astype(np.float32)
            with contextlib.suppress(InputError):
                tree = shapes(layer, x)
                maps.setdefault(tree, x)
                trees[tree][name] = layer
                break
    for tree, variants in trees.items():
        if len(variants) > 1:
            yield maps[tree], variants


def shapes(layer: nn.Module, x: np.ndarray) -> Hashable:
    leaves = flatten_dict(abstract_variables(layer, x.shape))
    return tuple(sorted((path, leaf.shape) for path, leaf in leaves.items()))


def fields_of(layer: nn.Module) -> dict[str, Any]:
    """What may change its function once it has its weights."""
    others = {"parent", "name", "dtype", "param_dtype", "drop_rate", "norm"}
    names = {field.name for field in dataclasses.fields(layer)} - others
    return {name: getattr(layer, name) for name in names if not name.endswith("_init")}


def by_function(variants: Variants, x: np.ndarray) -> list[list[str]]:
    """The variants, of which those that return the same for the same weights stand together."""
    same: list[tuple[nn.Module, list[str]]] = []
    for name, layer in variants.items():
        for other, names in same:
            if fields_of(layer) == fields_of(other) or equal(layer, other, x):
                names.append(name)
                break
        else:
            same.append((layer, [name]))
    return [names for _, names in same]


def differing(layers: list[nn.Module], x: np.ndarray) -> list[str]:
    """The fields that by themselves turn the function of one of the layers into another."""
    found = set()
    for layer, other in itertools.permutations(layers, 2):
        for field, value in fields_of(other).items():
            if fields_of(layer)[field] != value:
                changed = layer.clone(**{field: value})
                try:
                    alike = shapes(changed, x) != shapes(layer, x) or equal(layer, changed, x)
                except InputError:  # the fields hang together
                    alike = False
                found |= set() if alike else {field}
    return sorted(found)


def equal(layer: nn.Module, other: nn.Module, x: np.ndarray) -> bool:
    """Whether two layers of the same tensors return the same, with weights unlike any initial."""
    variables = random_variables(abstract_variables(layer, x.shape))
    one: Any = layer.apply(variables, x)
    another: Any = other.apply(variables, x)
    return np.allclose(one, another, rtol=1e-4, atol=1e-5)


def random_variables(abstract: dict[str, Any]) -> dict[str, Any]:
    """Numbers of both signs for all but variances."""
    rng = np.random.default_rng(1)
    leaves = flatten_dict(abstract)
    arrays = {path: rng.normal(size=a.shape).astype(np.float32) for path, a in leaves.items()}
    arrays |= {path: np.square(array) for path, array in arrays.items() if path[-1] == "var"}
    return unflatten_dict(arrays)


if __name__ == "__main__":
    print(table())
