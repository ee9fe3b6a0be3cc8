"""Models as StableHLO: one file for CPUs, NVIDIA GPUs and TPUs, which JAX runs without our code."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import export

from flaxattn.errors import unknown
from flaxattn.export.evaluation import any_batch, evaluation, images_of

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN = (*PLATFORMS, "rocm")


def to_stablehlo(
    model: nn.Module,
    variables: Mapping[str, Any],
    input_shape: Sequence[int | None],
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """A model in evaluation mode with its variables, as each platform computes it fastest.

    `input_shape` is (N, H, W, C) of float32 images; None for N leaves it open. `.serialize()` gives
    the bytes of a file, `jax.export.deserialize(bytes).call(images)` runs them, and
    `.mlir_module()` is the text. JAX keeps such a file readable for six months at least. A platform
    need not be at hand to be exported for.

    Raises InputError for an unknown platform, and where the number of images decides what is
    computed but is left open.
    """
    for platform in platforms:
        if platform not in _KNOWN:
            raise unknown("platform", platform, _KNOWN)
    with any_batch(input_shape):
        program = jax.jit(evaluation(model, variables))
        return export.export(program, platforms=tuple(platforms))(images_of(input_shape))
