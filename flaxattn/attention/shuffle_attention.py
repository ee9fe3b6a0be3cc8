"""Shuffle attention: half of each group of channels is gated per channel, half per position."""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32

EPSILON = 1e-5  # of the group normalisation


class ShuffleAttention(Mechanism):
    """Shuffle attention: channel gates on half of each group, spatial gates on its other half.

    The channels form `groups` groups; each is halved into a and b of q = C / (2 groups) channels.

        a' = a * sigmoid(w1 mean_hw a + b1)     (Eq. 1, 2)
        b' = b * sigmoid(w2 norm_hw(b) + b2)    (Eq. 3)
        y  = shuffle([a', b'])                  all groups together, then halves interleaved

    norm_hw normalises each channel of a sample over the map, with a scale and a bias of its own.
    All weights are vectors of q that the groups share. They start at w = 0, b = 1, where y is
    sigmoid(1) times the shuffled x.

    Zhang, Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021,
    arXiv:2102.00240.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider.
    Parameters: cweight, cbias, sweight, sbias (q,), gn scale and bias (q,).
    Sows both gates: {"channel": (N, C / 2), "spatial": (N, H, W, C / 2)}, group after group.

    Fields:
        groups: the number of groups.
        dtype: of the gates' arithmetic, if wider than float32.
        kernel_init: of cweight and sweight.
        bias_init: of cbias and sbias.

    Raises InputError unless 2 * groups divides C; the authors' code fails there too, or, at 3
    channels a group, quietly splits them into 2 and 1.
    """

    groups: int = 64
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    role = "recalibrate"
    namings = {
        "official": tuple((name, name, "1n11") for name in ("cweight", "cbias", "sweight", "sbias"))
    }

    official = variant("The authors' sa_layer; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        _require_even_groups(self.groups, features)
        share = features // (2 * self.groups)
        wide = at_least_float32(self.dtype or x.dtype)

        def vector(name: str, init: Initializer) -> Array:
            return self.param(name, init, (share,), self.param_dtype).astype(wide)

        def of_channels(first: Array, second: Array) -> Array:
            """(1, 1, 1, C): one value a channel of the first and of the second halves."""
            return jnp.tile(jnp.concatenate([first, second]), self.groups).reshape(1, 1, 1, -1)

        cweight, sweight = (vector(f"{half}weight", self.kernel_init) for half in "cs")
        cbias, sbias = (vector(f"{half}bias", self.bias_init) for half in "cs")
        scale, bias = (
            vector.astype(wide) for vector in _Affine(share, self.param_dtype, name="gn")()
        )
        zeros = jnp.zeros(share, wide)

        # Each channel has statistics and logits of its own, slope * (x - mean) + level, with no
        # slope in the first halves. So the channels stay together: a TPU pads an axis of a few
        # channels to 128.
        mean = average_pool(x).astype(wide)[:, None, None, :]
        centred = x.astype(wide) - mean
        variance = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)
        slope = of_channels(zeros, sweight * scale) * lax.rsqrt(variance + EPSILON)
        level = of_channels(cweight, zeros) * mean + of_channels(cbias, sweight * bias + sbias)
        gate = jax.nn.sigmoid(slope * centred + level)
        halves = gate.reshape(*gate.shape[:3], self.groups, 2, share)
        channel = halves[:, 0, 0, :, 0].reshape(x.shape[0], -1)
        spatial = halves[..., 1, :].reshape(*gate.shape[:3], -1)
        self.sow("intermediates", "attention", {"channel": channel, "spatial": spatial})
        y = rescale(x, gate)
        return lax.platform_dependent(y, tpu=_interleaved_by_a_matrix, default=_interleaved)


class _Affine(nn.Module):
    """The parameters of a group normalisation."""

    features: int
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        shape = (self.features,)
        return (
            self.param("scale", nn.initializers.ones, shape, self.param_dtype),
            self.param("bias", nn.initializers.zeros, shape, self.param_dtype),
        )


def _interleaved(y: Array) -> Array:
    """Channel i * C / 2 + j becomes channel 2j + i."""
    halves = y.reshape(*y.shape[:-1], 2, -1)
    return jnp.swapaxes(halves, -1, -2).reshape(y.shape)


def _interleaved_by_a_matrix(y: Array) -> Array:
    """The same; exact, for each column holds a single one. A TPU moves channels slowly."""
    features = y.shape[-1]
    order = np.arange(features).reshape(2, -1).T.ravel()
    matrix = jnp.asarray(np.eye(features)[:, order], y.dtype)
    return jnp.einsum("nhwc,cd->nhwd", y, matrix, precision=lax.Precision.HIGHEST)


def _require_even_groups(groups: int, features: int) -> None:
    if groups >= 1 and features % (2 * groups) == 0:
        return
    if features % 2:
        raise InputError(
            f"groups={groups} cannot halve groups of {features} channels, an odd number: give the "
            f"layer an even number of channels."
        )
    most = features // 2
    legal = max(n for n in range(1, most + 1) if most % n == 0 and n <= max(groups, 1))
    raise InputError(
        f"groups={groups} does not cut {features} channels into groups of an even size: use a "
        f"divisor of {most}, such as {legal}."
    )
