"""Shuffle attention: half of each group of channels is gated per channel, half per position."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.maps import require_maps
from flaxattn.attention.pooling import average_pool, rescale
from flaxattn.conv import Initializer
from flaxattn.errors import InputError
from flaxattn.norm import GroupNorm
from flaxattn.precision import at_least_float32


class ShuffleAttention(nn.Module):
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
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    role: ClassVar[str] = "recalibrate"
    variants: ClassVar[tuple[str, ...]] = ("official",)
    namings: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {
        "official": tuple((name, name, "1n11") for name in ("cweight", "cbias", "sweight", "sbias"))
    }

    @classmethod
    def official(cls, **fields) -> "ShuffleAttention":
        """The authors' sa_layer; the default."""
        return cls(**fields)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        require_maps(x)
        batch, height, width, features = x.shape
        _require_even_groups(self.groups, features)
        share = features // (2 * self.groups)
        wide = at_least_float32(self.dtype or x.dtype)

        def affine(z: Array, prefix: str) -> Array:
            shape = (share,)
            weight = self.param(f"{prefix}weight", self.kernel_init, shape, self.param_dtype)
            bias = self.param(f"{prefix}bias", self.bias_init, shape, self.param_dtype)
            row = (1,) * (z.ndim - 1) + shape
            return weight.astype(wide).reshape(row) * z + bias.astype(wide).reshape(row)

        halves = x.reshape(batch, height, width, self.groups, 2, share)
        first, second = halves[..., 0, :], halves[..., 1, :]

        pooled = average_pool(first.reshape(batch, height, width, -1))
        pooled = pooled.astype(wide).reshape(batch, self.groups, share)
        channel = jax.nn.sigmoid(affine(pooled, "c"))

        # The groups stay apart, as samples do: each has statistics of its own.
        gn = GroupNorm(
            share,
            reduction_axes=(1, 2, -1),
            dtype=wide,
            param_dtype=self.param_dtype,
            name="gn",
        )
        spatial = jax.nn.sigmoid(affine(gn(second.astype(wide)), "s"))
        self.sow(
            "intermediates",
            "attention",
            {
                "channel": channel.reshape(batch, -1),
                "spatial": spatial.reshape(batch, height, width, -1),
            },
        )
        y = jnp.stack(
            (rescale(first, channel[:, None, None, :, :]), rescale(second, spatial)), axis=-2
        )
        # Channel i * C / 2 + j of the groups, laid end to end, becomes channel 2j + i.
        y = y.reshape(batch, height, width, 2, features // 2)
        return jnp.swapaxes(y, -1, -2).reshape(x.shape)


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
