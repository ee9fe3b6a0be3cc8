"""Normalisation as torch computes it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.conv import Initializer
from flaxattn.errors import InputError
from flaxattn.precision import at_least_float32

# The variance about the mean, so that a large mean costs no digits. Flax's own widening is to
# float32, which float64 cannot follow, and without it Flax multiplies by scale and bias whatever
# their dtype is: here they are cast before.
_AS_TORCH: dict[str, Any] = {
    "use_bias": False,
    "use_scale": False,
    "use_fast_variance": False,
    "force_float32_reductions": False,
}


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    For maps that are float32 or wider already. Parameters: scale, bias (C,). Answers in `dtype`, or
    x's.
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = nn.LayerNorm(self.epsilon, name="centred", **_AS_TORCH)
        return _affine(self, norm(x.astype(self.dtype or x.dtype)))


class GroupNorm(nn.Module):
    """Group normalisation, over the map and C / num_groups channels (Wu and He, arXiv:1803.08494).

    (N, ..., C) -> the same shape, in x's dtype, or `dtype`; it computes in float32 or wider.
    `reduction_axes` are others than all but the first. It can stand where a `BatchNorm` does:
    `train` changes nothing.

    Parameters: scale, bias (C,). Raises InputError for channels that the groups do not divide.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    reduction_axes: tuple[int, ...] | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        if x.shape[-1] % self.num_groups:
            raise InputError(
                f"num_groups={self.num_groups} must divide the {x.shape[-1]} channels: use "
                f"num_groups={math.gcd(self.num_groups, x.shape[-1])} or another divisor."
            )
        norm = nn.GroupNorm(
            self.num_groups,
            epsilon=self.epsilon,
            reduction_axes=self.reduction_axes,
            name="centred",
            **_AS_TORCH,
        )
        dtype = self.dtype or x.dtype
        return _affine(self, norm(x.astype(at_least_float32(dtype)))).astype(dtype)


def _affine(layer: Any, y: Array) -> Array:
    """y * scale + bias, parameters of `layer`, in y's dtype."""
    for name, init, apply in (
        ("scale", layer.scale_init, jnp.multiply),
        ("bias", layer.bias_init, jnp.add),
    ):
        vector = layer.param(name, init, (y.shape[-1],), layer.param_dtype)
        y = apply(y, _row(vector.astype(y.dtype), y.ndim))
    return y


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015, arXiv:1502.03167).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias; with `train` mean and var are those of the
    batch and the running statistics move by (1 - momentum), else the running ones are used.

    Differs from `flax.linen.BatchNorm` where torch does: the running variance takes the unbiased
    variance of the batch (n / (n - 1)), momentum defaults to 0.9 (torch's 0.1), and a batch with
    one value per channel is refused in train mode, for its normalised value is 0 whatever x is.
    The variance is taken about the mean, in float32 or wider, so a large mean costs no digits.

    Under `jit` over a sharded batch the statistics are those of the global batch.

    Parameters: scale, bias (C,); batch_stats: mean, var (C,). Answers in x's dtype, or `dtype`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)

        wide = at_least_float32(x.dtype)
        out_dtype = self.dtype or x.dtype
        x = x.astype(wide)
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            if count < 2:
                raise InputError(
                    f"batch normalisation in train mode needs more than one value per channel, "
                    f"and an input of shape {x.shape} has one: use a larger batch or map, or "
                    f"train=False."
                )
            mean = jnp.mean(x, axes)
            centred = x - _row(mean, x.ndim)
            var = jnp.mean(jnp.square(centred), axes)
            if not self.is_initializing():
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, var * (count / (count - 1)))
        else:
            var = running_var.value.astype(wide)
            centred = x - _row(running_mean.value.astype(wide), x.ndim)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale.astype(wide)
        y = centred * _row(factor, x.ndim) + _row(bias.astype(wide), x.ndim)
        return y.astype(out_dtype)

    def _moved(self, running: Array, batch: Array) -> Array:
        batch = jax.lax.stop_gradient(batch).astype(running.dtype)
        return self.momentum * running + (1 - self.momentum) * batch


def _row(vector: Array, ndim: int) -> Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))
