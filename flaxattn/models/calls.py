"""What a network is called with: images, and variables of its own."""

import contextlib
from collections.abc import Iterator

from flax import errors
from flax import linen as nn
from jax import Array

from flaxattn.errors import InputError
from flaxattn.layers.maps import require_maps

# Images have no more channels than this, and no fewer rows.
_MOST_CHANNELS = 4
# What Flax raises for another network's variables, or for a part of them.
_NOT_ITS_OWN = (
    errors.ScopeParamShapeError,
    errors.ScopeParamNotFoundError,
    errors.ScopeCollectionNotFound,
    errors.ScopeVariableNotFoundError,
)


@contextlib.contextmanager
def reading(network: nn.Module, images: Array) -> Iterator[None]:
    """InputError for what is no batch of images, and instead of what `own_variables` is for."""
    require_maps(images, "images")
    _, height, width, channels = images.shape
    if height <= _MOST_CHANNELS < min(width, channels):
        raise InputError(
            f"images of shape {images.shape} have their channels before their rows and columns: "
            f"give (N, H, W, C), such as images.transpose(0, 2, 3, 1)."
        )
    with own_variables(network):
        yield


@contextlib.contextmanager
def own_variables(network: nn.Module) -> Iterator[None]:
    """InputError instead of Flax's errors for variables that are not the network's."""
    try:
        yield
    except _NOT_ITS_OWN as error:
        raise InputError(
            f"these variables are not those of this {type(network).__name__}, or not for such "
            f"images: initialise or load them for it, and give apply all of them. Flax says: "
            f"{str(error).partition(' (https:')[0]}"
        ) from error
