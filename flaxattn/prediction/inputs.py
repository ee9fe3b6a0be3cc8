"""What is given for a prediction: image files, names of classes, variables."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict

from flaxattn.errors import InputError
from flaxattn.images.canvas import Placed, Size
from flaxattn.images.decoding import image_size
from flaxattn.layers.abstract_variables import abstract_variables

_BATCH = 8  # images on canvases, which may be large


def paths_of(images: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """One path or several as a list. Raises InputError for none."""
    paths: list[str | Path] = [images] if isinstance(images, str | Path) else list(images)
    if not paths:
        raise InputError("there are no images: give the path of one or more.")
    return paths


def names_for(classes: Sequence[str] | None, count: int, *, but: str = "") -> Sequence[str]:
    """A name for each of `count` classes, by default its number.

    `but` says which of the model's classes is not among them.

    Raises InputError for another number of names.
    """
    if classes is None:
        return [str(label) for label in range(count)]
    if len(classes) != count:
        raise InputError(
            f"{len(classes)} names for the {count} classes of the model{but}: give one for each."
        )
    return classes


def batches(paths: Sequence[str | Path], preprocessing: Any) -> Iterator[tuple[list[int], Placed]]:
    """Images of one canvas together, as indices of `paths` and the stacked arrays of `Placed`.

    Batches of one canvas have one size, so that there is a program for each canvas: the last is
    filled up with the first of its images, which has then more rows than indices.
    """
    of_canvas: defaultdict[Size, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        of_canvas[preprocessing.canvas_of(*image_size(path))].append(index)
    for indices in of_canvas.values():
        size = min(_BATCH, len(indices))
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            rows = [preprocessing(paths[index]) for index in chosen]
            rows += rows[:1] * (size - len(rows))
            yield chosen, Placed(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


@contextlib.contextmanager
def explained(model: nn.Module, variables: Mapping[str, Any], preprocessing: Any) -> Iterator[None]:
    """What a model refuses, and why, where the variables are for images of other channels."""
    try:
        yield
    except (InputError, ScopeParamShapeError) as error:
        misfit = _misfit(model, variables, preprocessing)
        if misfit is None:
            raise
        raise misfit from error


def _misfit(
    model: nn.Module, variables: Mapping[str, Any], preprocessing: Any
) -> InputError | None:
    """The error for images of another number of channels than the variables are for."""
    channels = preprocessing.input_size[-1]
    shapes = flatten_dict(abstract_variables(model, (1, *preprocessing.input_size)))
    for path, array in flatten_dict(dict(variables)).items():
        wanted, shape = shapes[path].shape if path in shapes else (), np.shape(array)
        if path[-1] == "kernel" and wanted[-2:-1] == (channels,) != shape[-2:-1]:
            return InputError(
                f"input_size={preprocessing.input_size} has {channels} channels, but the kernel "
                f"{'/'.join(path[1:-1])} of these variables takes {shape[-2]}: use the "
                f"preprocessing of these weights, or load them for such images (load_pretrained "
                f"has grey=True)."
            )
    return None
