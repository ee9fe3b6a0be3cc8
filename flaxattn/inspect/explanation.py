"""What a classifier sees in images: its classes, a map for each, and the gates of its attention."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import Array

from flaxattn.errors import InputError, require_least, require_range, unknown
from flaxattn.inspect.attention_maps import recorded
from flaxattn.inspect.cam import class_activation_maps, heat_maps


class Explanation(NamedTuple):
    """Of one image.

    Fields:
        heats: class activation maps (H, W), from 0 to 1, by what stands above them.
        gates: of channels, (C,), by their names in `attention_maps`.
    """

    heats: dict[str, np.ndarray]
    gates: dict[str, np.ndarray]


def explain(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    classes: Sequence[int | str] | None = None,
    top: int = 3,
    names: Sequence[str] | None = None,
    several: bool = False,
) -> list[Explanation]:
    """An explanation of what a classifier says of each image.

    Args:
        model: returns logits (N, num_classes) for images (N, H, W, C).
        variables: its variables.
        images: float32 (N, H, W, C), preprocessed.
        method, layer: see `class_activation_maps`. Eigen-CAM has one map, of no class.
        classes: numbers or names, for all images; None for each one's likeliest.
        top: how many of the likeliest.
        names: of all classes.
        several: whether an image may show several classes (a sigmoid instead of a softmax).

    Raises InputError for a network of another kind, for classes that are not there and a `top`
    below one, and for what `class_activation_maps` refuses.
    """
    require_least("top", top, 1)
    variables = jax.device_put(variables)

    @jax.jit
    def look(variables: Any, images: Array) -> tuple[Array, dict[str, Array]]:
        logits: Any = model.apply(variables, images)
        if getattr(logits, "ndim", 0) != 2:
            raise InputError(
                f"{type(model).__name__} returns no logits (N, num_classes), and this is for "
                f"classifiers: call class_activation_maps for other networks."
            )
        probabilities = jax.nn.sigmoid(logits) if several else jax.nn.softmax(logits)
        maps = recorded(model, variables, images)
        return probabilities, {name: gate for name, gate in maps.items() if gate.ndim == 2}

    @jax.jit
    def heat(variables: Any, images: Array, classes: Array) -> Array:
        options: dict[str, Any] = {"method": method, "layer": layer, "classes": classes}
        maps = class_activation_maps(model, variables, images, **options)
        return heat_maps(maps, images.shape[1:3])

    # Whatever is refused is refused before anything is compiled.
    count = jax.eval_shape(look, variables, images)[0].shape[1]
    if names is not None and len(names) != count:
        raise InputError(f"{len(names)} names for {count} classes: give one for each.")
    given = None if classes is None else [_number(one, count, names) for one in classes]
    jax.eval_shape(heat, variables, images, jax.ShapeDtypeStruct((len(images),), np.int32))

    probabilities, gates = jax.device_get(look(variables, images))
    if given is None:
        chosen = np.argsort(-probabilities, axis=1, kind="stable")[:, :top].astype(np.int32)
    else:
        chosen = np.tile(np.array(given, np.int32), (len(images), 1))
    columns = chosen.T[:1] if method == "eigen_cam" else chosen.T
    heats = [np.asarray(heat(variables, images, column)) for column in columns]

    def title(image: int, label: int) -> str:
        if method == "eigen_cam":
            return "Eigen-CAM"
        name = str(label) if names is None else names[label]
        return f"{name} ({probabilities[image, label]:.2f})"

    return [
        Explanation(
            {title(i, column[i]): maps[i] for column, maps in zip(columns, heats, strict=True)},
            {name: gate[i] for name, gate in gates.items()},
        )
        for i in range(len(images))
    ]


def _number(given: int | str, count: int, names: Sequence[str] | None) -> int:
    """The number of a class that is given by its name or its number."""
    if names is not None and given in names:
        return names.index(str(given))
    try:
        number = int(given)
    except ValueError:
        raise unknown("class", given, names or ()) from None
    require_range("class", number, 0, count - 1)
    return number
