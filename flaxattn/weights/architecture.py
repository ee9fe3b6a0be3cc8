"""Which model of MODELS a checkpoint is of, by the names and shapes of its tensors."""

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.models import MODELS, create_model
from flaxattn.weights.convert import Fit, abstract_variables, fit

_SECONDS = 10  # an error may take as long to name its cause; then the best so far is the answer
_FLAWS = 2  # as many tensors may not fit in a file of this very model: a head has two
_ALIKE = 0.5  # the least share of arrays that fit for a name to be worth mentioning


def likeliest(
    module: nn.Module, found: Fit, tensors: Mapping[str, np.ndarray], *, hint: str = ""
) -> str | None:
    """The model whose weights `tensors` look like, where `module` is another; or None.

    Models are evaluated abstractly until one fits but for its head: first those whose name is in
    `hint`, a file's path or a repository, then all of the class whose first model has most names
    in common with the tensors, and so on, as long as it has any.
    """
    if type(module) not in _families() or len(found.problems) <= _FLAWS:
        return None
    best, name = max(_ALIKE, found.agreement), None
    end = time.monotonic() + _SECONDS
    for candidate in _by_likelihood(tensors, hint):
        attempt = _fit(candidate, tensors)
        if attempt.agreement > best:
            best, name = attempt.agreement, candidate
        if len(attempt.problems) <= _FLAWS or time.monotonic() > end:
            break
    return name


def _by_likelihood(tensors: Mapping[str, np.ndarray], hint: str) -> Iterator[str]:
    """All models, the hinted ones and then those of the likelier classes first."""
    yield from sorted((name for name in MODELS if name in hint), key=len, reverse=True)

    shares = {}
    for family, names in _families().items():
        keys = set(_fit(names[0], tensors).keys.values())
        shares[family] = len(keys & tensors.keys()) / len(keys)
    for family in sorted(shares, key=lambda family: -shares[family]):
        if shares[family]:
            yield from _families()[family]


def _families() -> Mapping[type[nn.Module], list[str]]:
    """The names of MODELS by the class that they make."""
    families: dict[type[nn.Module], list[str]] = {}
    for name in MODELS:
        families.setdefault(type(create_model(name)), []).append(name)
    return families


def _fit(name: str, tensors: Mapping[str, np.ndarray]) -> Fit:
    model = create_model(name)
    return fit(model, _targets(name), tensors)


@functools.cache
def _targets(name: str) -> Mapping[tuple[str, ...], Any]:
    return flatten_dict(abstract_variables(create_model(name), (1, 224, 224, 3)))
