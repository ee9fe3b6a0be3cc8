"""Which model of MODELS a checkpoint is of, by the names and shapes of its tensors.

To evaluate a model takes up to seconds, so the nearest are tried first, by two numbers: of tensors,
and of the values in 3x3 kernels, which no head has and hardly any attention. architectures.json
has them for every model; `python -m tests.weights.architectures` writes it.
"""

import functools
import importlib.resources
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.models import MODELS, create_model
from flaxattn.weights.convert import Fit, fit

_TRIES = 8  # models that are near enough: up to five have the same numbers
_SECONDS = 10  # an error may take as long to name its cause; then the best so far is the answer
_FLAWS = 2  # as many tensors may not fit in a file of this very model: a head has two
_ALIKE = 0.5  # the least share of arrays that fit for a name to be worth mentioning


def likeliest(
    module: nn.Module, found: Fit, tensors: Mapping[str, np.ndarray], *, hint: str = ""
) -> str | None:
    """The model whose weights `tensors` look like, where `module` is another; or None.

    Models are evaluated abstractly until one fits but for its head: first those whose name is in
    `hint`, a file's path or a repository, then the nearest.
    """
    networks = {type(create_model(name)) for name in MODELS}
    if type(module) not in networks or len(found.problems) <= _FLAWS:
        return None
    hinted = sorted((name for name in MODELS if name in hint), key=len, reverse=True)
    near = nearest(numbers(np.shape(tensor) for tensor in tensors.values()))
    best, name = max(_ALIKE, found.agreement), None
    end = time.monotonic() + _SECONDS
    for candidate in dict.fromkeys([*hinted, *near[:_TRIES]]):
        attempt = _fit(candidate, tensors)
        if attempt.agreement > best:
            best, name = attempt.agreement, candidate
        if len(attempt.problems) <= _FLAWS or time.monotonic() > end:
            break
    return name


def numbers(shapes: Iterable[Sequence[int]]) -> tuple[int, int]:
    """How many tensors there are, without torch's counters, and values in 3x3 kernels.

    The same for torch's order of axes and for ours.
    """
    shapes = [tuple(shape) for shape in shapes if len(shape)]
    kernels = [s for s in shapes if len(s) == 4 and (3, 3) in (s[:2], s[2:])]
    return len(shapes), sum(map(math.prod, kernels))


def nearest(own: Sequence[int]) -> list[str]:
    """The models by how near their numbers are: those of 3x3 kernels first, then of tensors."""

    def distance(name: str) -> list[float]:
        return [abs(math.log((a + 1) / (b + 1))) for a, b in zip(own, _known()[name], strict=True)]

    known = [name for name in MODELS if name in _known()]
    return sorted(known, key=lambda name: distance(name)[::-1])


@functools.cache
def _known() -> Mapping[str, Sequence[int]]:
    file = importlib.resources.files("flaxattn.weights") / "architectures.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _fit(name: str, tensors: Mapping[str, np.ndarray]) -> Fit:
    return fit(create_model(name), _targets(name), tensors)


@functools.cache
def _targets(name: str) -> Mapping[tuple[str, ...], Any]:
    return flatten_dict(abstract_variables(create_model(name), (1, 224, 224, 3)))
