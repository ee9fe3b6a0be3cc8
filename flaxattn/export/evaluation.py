"""What is exported: a model in evaluation mode, for images of one size and perhaps any number."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn
from jax import Array, export
from jax import numpy as jnp
from jax.errors import InconclusiveDimensionOperation

from flaxattn.errors import InputError


def evaluation(model: nn.Module, variables: Mapping[str, Any]) -> Callable[[Array], Any]:
    """The model's answer to images (N, H, W, C)."""

    def evaluate(images: Array) -> Any:
        return model.apply(variables, images)

    return evaluate


def images_of(input_shape: Sequence[int | None]) -> jax.ShapeDtypeStruct:
    """float32 (N, H, W, C), where None for N becomes a symbol."""
    (batch, *size) = input_shape
    sizes = size if batch is None else input_shape
    if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise InputError(
            f"input_shape={tuple(input_shape)} must be (N, H, W, C), integers of 1 or more; "
            "N may be None."
        )
    count = export.symbolic_shape("batch")[0] if batch is None else batch
    return jax.ShapeDtypeStruct((count, *size), jnp.float32)


@contextmanager
def any_batch(input_shape: Sequence[int | None]) -> Iterator[None]:
    """InputError instead of JAX's own where the number of images cannot be left open."""
    try:
        yield
    except (InconclusiveDimensionOperation, NotImplementedError) as error:
        if input_shape[0] is not None:
            raise
        size = ", ".join(map(str, input_shape[1:]))
        raise InputError(
            "the number of images decides what is computed, so it cannot be left open: state it, "
            f"as in input_shape=(1, {size})."
        ) from error
