"""Normalisation as torch computes it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.errors import InputError, require_least, require_range
from flaxattn.layers.conv import Initializer
from flaxattn.layers.fields import Checked
from flaxattn.layers.maps import require_maps
from flaxattn.layers.precision import at_least_float32

# The variance is taken about the mean, so that a large mean costs no digits. Flax would widen to
# float32, which is too narrow for float64. Without that it does not cast scale and bias, which
# `_affine` does.
_AS_TORCH: dict[str, Any] = {
    "use_bias": False,
    "use_scale": False,
    "use_fast_variance": False,
    "force_float32_reductions": False,
}


class LayerNorm(Checked):
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    For maps that are float32 or wider already. The result has `dtype`, or x's own.

    Parameters: scale, bias (C,).
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        require_least("epsilon", self.epsilon, 0)
        norm = nn.LayerNorm(self.epsilon, name="centred", **_AS_TORCH)
        return _affine(self, norm(x.astype(self.dtype or x.dtype)))


class GroupNorm(Checked):
    """Group normalisation, over the map and C / num_groups channels (Wu and He, arXiv:1803.08494).

    (N, ..., C) -> the same shape, in `dtype` or x's own; computed in float32 or wider. It can
    replace a `BatchNorm`: `train` changes nothing.

    Parameters: scale, bias (C,). Raises InputError for channels that the groups do not divide, no
    groups, and a negative epsilon.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        require_maps(x, axes=range(2, 6))
        require_least("num_groups", self.num_groups, 1)
        require_least("epsilon", self.epsilon, 0)
        if x.shape[-1] % self.num_groups:
            raise InputError(
                f"num_groups={self.num_groups} must divide the {x.shape[-1]} channels: use "
                f"num_groups={math.gcd(self.num_groups, x.shape[-1])} or another divisor."
            )
        norm = nn.GroupNorm(self.num_groups, epsilon=self.epsilon, name="centred", **_AS_TORCH)
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


class BatchNorm(Checked):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015, arXiv:1502.03167).

    y = (x - mean) / sqrt(var + epsilon) * scale + bias; with `train` mean and var are those of the
    batch and the running statistics move by (1 - momentum), else the running ones are used.

    Differs from `flax.linen.BatchNorm` where torch does. The running variance takes the unbiased
    variance of the batch (n / (n - 1)). Momentum defaults to 0.9 (torch's 0.1). A batch with one
    value per channel is refused in train mode, for its normalised value is 0 whatever x is.

    Statistics are float32 or wider, and take one pass over x and one collective: see `_moments`.
    A large mean costs no digits. Under `jit` over a sharded batch they are those of the global
    batch.

    Fields:
        bn_group: how many consecutive examples share statistics; None for the whole batch. With N
            examples on D devices, N / D is each device by itself, with no collective but that of
            the running statistics. These take the groups' averages.

    Parameters: scale, bias (C,); batch_stats: mean, var (C,). The result has `dtype`, or x's own.

    Raises InputError for a momentum outside 0 to 1 and a negative epsilon; and in train mode for
    one value per channel, for a `bn_group` that does not divide the batch, and where `batch_stats`
    is not mutable.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    bn_group: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        require_least("epsilon", self.epsilon, 0)
        require_range("momentum", self.momentum, 0, 1)
        require_maps(x, axes=range(2, 6))
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)

        wide = at_least_float32(x.dtype)
        vectors = (scale, bias, running_mean.value, running_var.value)
        scale, bias, mean, var = (vector.astype(wide) for vector in vectors)
        if not train:
            y = _normalised(x, mean, var, scale, bias, self.epsilon)
            return y.astype(self.dtype or x.dtype)

        def by_own_statistics(x: Array) -> tuple[Array, Array, Array]:
            own_mean, own_var = _moments(x, mean)
            return _normalised(x, own_mean, own_var, scale, bias, self.epsilon), own_mean, own_var

        group = self._group_size(x)
        if not (self.is_initializing() or self.is_mutable_collection("batch_stats")):
            raise InputError(
                "train=True moves running statistics, which this call may not change: use "
                "apply(..., mutable=['batch_stats']), and keep the batch_stats that it returns."
            )
        if group == len(x):
            y, mean, var = by_own_statistics(x)
        else:
            y, means, variances = jax.vmap(by_own_statistics)(x.reshape(-1, group, *x.shape[1:]))
            y, mean, var = y.reshape(x.shape), jnp.mean(means, 0), jnp.mean(variances, 0)
        if not self.is_initializing():
            count = x.size // x.shape[-1] // (len(x) // group)
            running_mean.value = self._moved(running_mean.value, mean)
            running_var.value = self._moved(running_var.value, var * (count / (count - 1)))
        return y.astype(self.dtype or x.dtype)

    def _group_size(self, x: Array) -> int:
        group = len(x) if self.bn_group is None else self.bn_group
        if group < 1 or len(x) % group:
            raise InputError(
                f"bn_group={group} does not divide a batch of {len(x)} examples: use a divisor, "
                f"such as {math.gcd(group, len(x))}, or None for all of them."
            )
        if x.size // x.shape[-1] // (len(x) // group) < 2:
            grouped = "" if self.bn_group is None else f" with bn_group={self.bn_group}"
            raise InputError(
                f"batch normalisation in train mode needs more than one value per channel, and an "
                f"input of shape {x.shape}{grouped} has one: use a larger batch, map or group, or "
                f"train=False."
            )
        return group

    def _moved(self, running: Array, batch: Array) -> Array:
        batch = lax.stop_gradient(batch).astype(running.dtype)
        return self.momentum * running + (1 - self.momentum) * batch


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine stay as they were loaded, for detectors.

    y = x * (scale / sqrt(var + epsilon)) + (bias - mean * scale / sqrt(var + epsilon))

    (N, ..., C) -> the same shape, in `dtype` or x's own; computed in float32 or wider. As
    torchvision's FrozenBatchNorm2d. It can replace a `BatchNorm`: `train` changes nothing.

    Variables, all in batch_stats, which no optimiser sees: scale, bias, mean, var (C,).
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        wide = at_least_float32(x.dtype)
        starts = {"scale": jnp.ones, "bias": jnp.zeros, "mean": jnp.zeros, "var": jnp.ones}
        scale, bias, mean, var = (
            self.variable("batch_stats", name, start, x.shape[-1:], self.param_dtype).value
            for name, start in starts.items()
        )
        scale, bias, mean, var = (vector.astype(wide) for vector in (scale, bias, mean, var))
        scale = scale * lax.rsqrt(var + self.epsilon)
        bias = bias - mean * scale
        y = x.astype(wide) * _row(scale, x.ndim) + _row(bias, x.ndim)
        return y.astype(self.dtype or x.dtype)


def _normalised(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float
) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the vectors' dtype.

    x is centred by the mean as a constant, and the mean's own part is in the vector that is added.
    The result and its gradients are the same for any constant. The gradients then need two sums
    over the map, of the output's gradient and of its product with the centred x, and no third.
    """
    scale = lax.rsqrt(var + epsilon) * scale
    centre = lax.stop_gradient(mean)
    bias = bias + (centre - mean) * scale
    ndim = x.ndim
    return (x.astype(mean.dtype) - _row(centre, ndim)) * _row(scale, ndim) + _row(bias, ndim)


@jax.custom_jvp
def _moments(x: Array, near: Array) -> tuple[Array, Array]:
    """Mean and biased variance over all axes but the last, in `near`'s dtype.

    One pass over x and one collective, by sums about a shift. That costs digits only where the
    shift is many deviations away from the mean.

    bfloat16 is coarser than what is lost so. Its shift is `near`, the running mean: that is known
    before x is, so a TPU adds up while it still convolves.

    In other dtypes each example is shifted by the middle of its own map, and the examples' moments
    are combined by the formula of Chan, Golub and LeVeque 1983, which is exact wherever the mean
    is.
    """
    if x.dtype == jnp.bfloat16:
        axes = tuple(range(x.ndim - 1))
        centred = x.astype(near.dtype) - _row(near, x.ndim)
        offset = jnp.mean(centred, axes)
        var = jnp.mean(jnp.square(centred), axes) - jnp.square(offset)
        return near + offset, jnp.maximum(var, 0)
    axes = tuple(range(1, x.ndim - 1))
    middle = x[(slice(None), *(slice(x.shape[a] // 2, x.shape[a] // 2 + 1) for a in axes))]
    middle = middle.astype(near.dtype)
    centred = x.astype(near.dtype) - middle
    count = math.prod(x.shape[1:-1])
    offset = jnp.mean(centred, axes)
    squares = jnp.sum(jnp.square(centred), axes) - count * jnp.square(offset)
    of_examples = (
        jnp.full_like(offset, count),
        jnp.squeeze(middle, axes),
        offset,
        jnp.maximum(squares, 0),
    )
    zero = np.zeros((), near.dtype)
    total, shift, offset, squares = lax.reduce(of_examples, (zero,) * 4, _combined, (0,))
    return shift + offset, squares / total


@_moments.defjvp
def _moments_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """d mean = mean dx and d var = 2 mean((x - mean) dx): whatever the shift was."""
    (x, near), (moved, _) = primals, tangents
    mean, var = _moments(x, near)
    axes = tuple(range(x.ndim - 1))
    moved = moved.astype(mean.dtype)
    centred = x.astype(mean.dtype) - _row(mean, x.ndim)
    return (mean, var), (jnp.mean(moved, axes), 2 * jnp.mean(centred * moved, axes))


def _combined(one: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
    """Moments of two parts together.

    Each has its count, a shift, the mean less the shift, and the sum of squares about the mean. The
    first one's shift stays, so that nothing is rounded as coarsely as the mean itself would be.
    """
    (n, shift, offset, squares), (m, other_shift, other_offset, other_squares) = one, other
    total = n + m
    share = m / lax.max(total, jnp.ones_like(total))
    apart = (other_shift - shift) + (other_offset - offset)
    nothing = n == 0
    return (
        total,
        lax.select(nothing, other_shift, shift),
        lax.select(nothing, other_offset, offset + apart * share),
        squares + other_squares + apart * (apart * (n * share)),
    )


def _row(vector: Array, ndim: int) -> Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))
