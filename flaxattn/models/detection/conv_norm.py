"""A convolution and the norm after it, numbered as torchvision's Conv2dNormActivation."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jax import Array

from flaxattn.layers.conv import Conv, Initializer


def conv_norm(
    module: Any, features: int, kernel_size: int, kernel_init: Initializer
) -> list[nn.Module]:
    """Layers for the `setup` of `module`: with its dtypes, and its `norm` if that is not None."""
    conv = Conv(
        features,
        kernel_size,
        use_bias=module.norm is None,
        kernel_init=kernel_init,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
    )
    return [conv] if module.norm is None else [conv, module.norm()]


def apply(layers: Sequence[Any], x: Array, train: bool) -> Array:
    """What these layers make of x."""
    conv, *norms = layers
    x = conv(x)
    for norm in norms:
        x = norm(x, train)
    return x
