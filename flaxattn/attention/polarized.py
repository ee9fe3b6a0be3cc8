"""Polarized self-attention: a channel gate and a spatial gate, each keeping full resolution."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import Initializer, torch_default
from flaxattn.layers.norm import LayerNorm
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32

_SOFTMAXES = ("query", "value", "result")
# How the authors draw the kernels of queries and values.
_KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_UPS = ("norm", "linear", "bottleneck")


class PolarizedAttention(Mechanism):
    """Polarized self-attention: x times a channel gate, plus x times a spatial gate.

        u = sum_i softmax_i(q . x_i) Wv x_i             C / 2 values, i over positions
        c = sigmoid(norm(Wz u))                         one gate a channel
        s_i = sigmoid(softmax(Wg mean_j x_j) . Wt x_i)  one gate a position
        y = c * x + s * x, or, in sequence, x' = c * x and y = s(x') * x'

    Liu, Liu, Fan, Huang, "Polarized Self-Attention: Towards High-quality Pixel-wise Regression",
    arXiv 2021, arXiv:2107.00782.

    The authors' two classes differ from the paper, and from each other:

        | variant             | order    | softmax of the spatial gate   | Wz                     |
        |---------------------|----------|-------------------------------|------------------------|
        | (default)           | parallel | query: over C / 2 channels    | 1x1, LayerNorm over C  |
        | official_parallel   | parallel | result: over positions        | 1x1                    |
        | official_sequential | sequence | value: Wt x_i, over positions | 1x1, LayerNorm, ReLU,  |
        |                     |          |                               | 1x1, with C / 8 hidden |

    The softmaxed "result" of HW positions is about 1 / HW, so that gate is little above 1/2.

    (N, H, W, C) -> (N, H, W, C) in x's dtype. The projections of maps compute in `dtype` or x's,
    softmaxes, pooled vectors and gates in float32 or wider.
    Parameters: conv_q_right kernel (1, 1, C, 1), conv_v_right, conv_q_left and conv_v_left
    (1, 1, C, C / 2), conv_up (1, 1, C / 2, C), biases of all five, ln scale and bias (C,); or
    conv_up_0 (1, 1, C / 2, C / 8), conv_up_1 scale and bias, conv_up_3 (1, 1, C / 8, C).
    Sows both gates: {"channel": (N, C), "spatial": (N, H, W, 1)}.

    Fields:
        sequential: the spatial gate reads and rescales what the channel gate has rescaled.
        spatial_softmax: of the spatial gate: "query", "value" or "result".
        up: how Wz widens to C channels: "norm", "linear" or "bottleneck".
        use_bias: biases, which the layers of "bottleneck" have in any case.
        qv_init: of the four kernels of queries and values, which the authors draw from
            N(0, 2 / fan_in); `kernel_init` is of Wz.
        dtype: of the projections, and of the gates if wider than float32.

    Deviations: the paper does not speak of biases, the default has them, as ports of its equations
    do.

    Raises InputError for unknown `spatial_softmax` and `up`, and for fewer than 2 channels, or than
    8 with "bottleneck".
    """

    sequential: bool = False
    spatial_softmax: str = "query"
    up: str = "norm"
    use_bias: bool = True
    qv_init: Initializer = torch_default

    role = "recalibrate"
    namings = {
        "official": (("conv_up.1", "conv_up_1", "n11"),),
        "fightingcv": (
            ("ch_wq", "conv_q_right"),
            ("ch_wv", "conv_v_right"),
            ("ch_wz", "conv_up"),
            ("sp_wq", "conv_q_left"),
            ("sp_wv", "conv_v_left"),
        ),
    }

    official_parallel = variant(
        "The authors' PSA_p: softmax of the result, no LayerNorm, no biases.",
        spatial_softmax="result",
        up="linear",
        use_bias=False,
        qv_init=_KAIMING_FAN_IN,
    )
    official_sequential = variant(
        "The authors' PSA_s: in sequence, softmax of the values, Wz with a bottleneck.",
        sequential=True,
        spatial_softmax="value",
        up="bottleneck",
        use_bias=False,
        qv_init=_KAIMING_FAN_IN,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.spatial_softmax not in _SOFTMAXES:
            raise unknown("spatial_softmax", self.spatial_softmax, _SOFTMAXES)
        if self.up not in _UPS:
            raise unknown("up", self.up, _UPS)
        fewest = 8 if self.up == "bottleneck" else 2
        if x.shape[-1] < fewest:
            raise InputError(
                f"{x.shape[-1]} channels are too few to be reduced with up={self.up!r}: use at "
                f"least {fewest}."
            )
        channel = self._channel_gate(x)
        attended = rescale(x, channel)
        spatial = self._spatial_gate(attended if self.sequential else x)
        self.sow("intermediates", "attention", {"channel": channel, "spatial": spatial})
        if self.sequential:
            return rescale(attended, spatial)
        return rescale(x, channel[:, None, None, :] + spatial)

    def _channel_gate(self, x: Array) -> Array:
        batch, height, width, features = x.shape
        wide = at_least_float32(self.dtype or x.dtype)
        energy = self._project(x, 1, "conv_q_right").reshape(batch, height * width)
        weights = jax.nn.softmax(energy.astype(wide))
        value = self._project(x, features // 2, "conv_v_right")
        z = jnp.einsum(
            "ni,nic->nc",
            weights.astype(value.dtype),
            value.reshape(batch, height * width, -1),
            preferred_element_type=wide,
        )[:, None, None, :]
        if self.up == "bottleneck":
            z = self._fc(features // 8, wide, "conv_up_0", use_bias=True)(z)
            z = jax.nn.relu(self._layer_norm(wide, "conv_up_1")(z))
            z = self._fc(features, wide, "conv_up_3", use_bias=True)(z)
        else:
            z = self._fc(features, wide, "conv_up", use_bias=self.use_bias)(z)
            z = self._layer_norm(wide, "ln")(z) if self.up == "norm" else z
        return jax.nn.sigmoid(z.reshape(batch, features))

    def _spatial_gate(self, x: Array) -> Array:
        batch, height, width, features = x.shape
        wide = at_least_float32(self.dtype or x.dtype)
        # The mean of a projected map is the projection of its mean.
        fc = self._fc(features // 2, wide, "conv_q_left", use_bias=self.use_bias)
        query = fc(average_pool(x).astype(wide)[:, None, None, :]).reshape(batch, -1)
        value = self._project(x, features // 2, "conv_v_left").reshape(batch, height * width, -1)
        if self.spatial_softmax == "query":
            query = jax.nn.softmax(query)
        if self.spatial_softmax == "value":
            value = jax.nn.softmax(value.astype(wide), axis=1)
        energy = jnp.einsum(
            "nc,nic->ni", query.astype(value.dtype), value, preferred_element_type=wide
        )
        if self.spatial_softmax == "result":
            energy = jax.nn.softmax(energy)
        return jax.nn.sigmoid(energy).reshape(batch, height, width, 1)

    def _conv(self, features: int, name: str, **fields) -> Callable[[Array], Array]:
        kernel_init = self.kernel_init if name.startswith("conv_up") else self.qv_init
        return self.convolution(features, kernel_init=kernel_init, name=name, **fields)

    def _project(self, x: Array, features: int, name: str) -> Array:
        return self._conv(features, name, use_bias=self.use_bias, dtype=self.dtype or x.dtype)(x)

    def _fc(
        self, features: int, dtype: DTypeLike, name: str, *, use_bias: bool
    ) -> Callable[[Array], Array]:
        """A 1x1 layer of vectors, which are float32 or wider already: of that `dtype`."""
        highest = lax.Precision.HIGHEST
        return self._conv(features, name, use_bias=use_bias, precision=highest, dtype=dtype)

    def _layer_norm(self, dtype: DTypeLike, name: str) -> Callable[[Array], Array]:
        return LayerNorm(dtype=dtype, param_dtype=self.param_dtype, name=name)
