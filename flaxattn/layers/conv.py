"""The one convolution of the library: padding as in torch, parameters as in flax.linen.Conv."""

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.errors import InputError
from flaxattn.layers import cpu_conv, tpu_conv
from flaxattn.layers.cpu_conv import Geometry, native
from flaxattn.layers.fields import Checked
from flaxattn.layers.maps import require_maps

Initializer = Callable[..., Array]
Formulation = Callable[[Array, Array, Geometry, lax.PrecisionLike], Array]

# torch draws the weights of nn.Conv2d and nn.Linear from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_default: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
kaiming_fan_in: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(Checked):
    """Convolution over (N, *spatial, C) with torch's symmetric padding.

    There are one to three spatial axes, and an integer holds for each of them. `padding=None` keeps
    the size at stride 1: dilation * (kernel_size - 1) / 2 on both sides, as torch code writes it.
    JAX's "SAME" pads strided maps on one side only and shifts them.

    Parameters are those of `flax.linen.Conv`: kernel (*kernel_size, C / groups, features) and
    bias (features,). Biases start at zero, where torch draws U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    A CPU computes 1x1, depthwise and grouped convolutions in faster ways, see `cpu_conv`, and a TPU
    those between a few channels, see `tpu_conv`. All others are XLA's own.

    `precision` is that of `lax.conv_general_dilated`. By default a TPU multiplies float32 numbers
    in bfloat16 and a recent GPU in TF32, with 8 and 11 significant bits instead of 24;
    lax.Precision.HIGHEST keeps all of float32.

    Raises InputError for an even kernel without explicit padding (no symmetric padding keeps the
    size), for channels that the groups do not divide, for a kernel larger than the padded map, for
    sizes, steps and counts below one, and for sequences of them that do not fit the axes.
    """

    features: int
    kernel_size: int | Sequence[int] = 1
    strides: int | Sequence[int] = 1
    padding: int | Sequence[int] | None = None
    dilation: int | Sequence[int] = 1
    groups: int = 1
    use_bias: bool = True
    precision: lax.PrecisionLike = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_default
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        require_maps(x, axes=(3, 4, 5))
        axes = x.ndim - 2
        per_axis(self, "features", 1, least=1)
        per_axis(self, "groups", 1, least=1)
        kernel_size = per_axis(self, "kernel_size", axes, least=1)
        strides = per_axis(self, "strides", axes, least=1)
        dilation = per_axis(self, "dilation", axes, least=1)
        if self.padding is not None:
            padding = per_axis(self, "padding", axes, least=0)
        else:
            for size in kernel_size:
                require_odd(size)
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel_size, dilation, strict=True))
        require_fit(x.shape[1:-1], kernel_size, padding, dilation)
        require_groups(self.groups, x.shape[-1], self.features)
        kernel_shape = (*kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, self.param_dtype)
        bias = (
            self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            if self.use_bias
            else None
        )
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        geometry = Geometry(strides, padding, dilation, self.groups)
        y = convolve(x, kernel, geometry, precision=self.precision)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def convolve(
    x: Array, kernel: Array, geometry: Geometry, *, precision: lax.PrecisionLike = None
) -> Array:
    """The convolution itself, as the platform it is compiled for computes it fastest."""

    faster = {
        platform: _by(formulation, geometry, precision)
        for platform, ways in (("cpu", cpu_conv), ("tpu", tpu_conv))
        if (formulation := ways.formulation(x, kernel, geometry)) is not None
    }
    if not faster:
        return native(x, kernel, geometry, precision)
    return lax.platform_dependent(x, kernel, **faster, default=_by(native, geometry, precision))


@functools.cache
def _by(
    formulation: Formulation, geometry: Geometry, precision: lax.PrecisionLike
) -> Callable[[Array, Array], Array]:
    """The formulation of these two alone; one function, so that JAX traces equal ones once."""
    return lambda x, kernel: formulation(x, kernel, geometry, precision)


def require_groups(groups: int, channels: int, features: int) -> None:
    """InputError unless `groups` divides both the input's channels and the features."""
    if channels % groups or features % groups:
        common = math.gcd(groups, channels, features)
        raise InputError(
            f"groups={groups} must divide both the {channels} input channels and the "
            f"{features} features: use groups={common} or another common divisor."
        )


def require_fit(
    sizes: Sequence[int],
    kernel_size: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """InputError if the kernel is larger than the padded map."""
    for size, k, p, d in zip(sizes, kernel_size, padding, dilation, strict=True):
        if size + 2 * p <= d * (k - 1):
            raise InputError(
                f"kernel_size={k} with dilation={d} covers {d * (k - 1) + 1} positions of an axis "
                f"of {size}, {size + 2 * p} with padding={p}: use a larger map or more padding."
            )


def require_odd(kernel_size: int, field: str = "kernel_size") -> int:
    """`kernel_size` itself. Raises InputError, naming `field`, if it is even or below one."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        smaller = max(kernel_size - 1, 1)
        raise InputError(
            f"{field}={kernel_size} cannot keep the size of a map with equal padding on both "
            f"sides: use an odd one, such as {smaller} or {smaller + 2}."
        )
    return kernel_size


def per_axis(layer: Any, field: str, axes: int, *, least: int) -> tuple[int, ...]:
    """A field of `layer` for each axis. Raises InputError unless all are `least` or more."""
    value = getattr(layer, field)
    values = (value,) * axes if isinstance(value, Integral) else tuple(value)
    if len(values) != axes:
        raise InputError(f"{field}={value} must be an integer, or {axes}, one for each axis.")
    if min(values) < least:
        word = "one" if least else "zero"
        raise InputError(f"{field}={value} is below {word}: use {least} or more.")
    return tuple(int(v) for v in values)
