"""SCA-CNN's softmax attention over channels and positions, told by a decoder's state."""

from dataclasses import KW_ONLY
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Mechanism, Part, variant
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import Initializer
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32

ORDERS = {"channel_spatial": ("channel", "spatial"), "spatial_channel": ("spatial", "channel")}


def official_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """The released code's: an orthogonal matrix where it is square, else N(0, 0.01^2)."""
    square = shape[-2] == shape[-1]
    init = nn.initializers.orthogonal() if square else nn.initializers.normal(0.01)
    return init(key, shape, dtype)


def _released(layer: str) -> tuple[tuple[str, ...], ...]:
    """Names of the released parameters around `layer` of its ResNet-152."""
    renames: list[tuple[str, ...]] = []
    for number, path in enumerate(("channel", "spatial"), start=1):
        renames += [
            (f"decoder_Wc_att_{layer}_{number}", f"{path}.context.kernel", "matrix"),
            (f"decoder_b_att_{layer}_{number}", f"{path}.context.bias"),
            (f"decoder_Wd_att_{layer}_{number}", f"{path}.state.kernel", "matrix"),
            (f"decoder_U_att_{layer}_{number}", f"{path}.kernel", "matrix"),
            (f"decoder_c_att_{layer}_{number}", f"{path}.bias"),
        ]
    return tuple(renames)


class SCACNN(Mechanism):
    """SCA-CNN: channels, then positions, weighed by softmaxes that a decoder's state conditions.

        score(v, h) = U . tanh(Wc v + b + Wd h) + c         U, Wc, b, Wd, c of either path
        beta_c      = softmax_c score(mean_hw x_hwc, h)
        x'          = C * beta * x
        alpha_hw    = softmax_hw score(x'_hw, h)
        y           = HW * alpha * x'

    Chen, Zhang, Xiao, Nie, Shao, Liu, Chua, "SCA-CNN: Spatial and Channel-wise Attention in
    Convolutional Networks for Image Captioning", CVPR 2017, arXiv:1611.05594.

    The factors C and HW are the released code's, which writes 49 for HW: even weights leave x as it
    is, and so does U = 0. Being the same for all scores, c has no effect.

    (N, H, W, C) -> (N, H, W, C) in x's dtype. The state h is (N, d), such as an LSTM's. The product
    Wc x' over the map takes `dtype` or x's, all else is float32 or wider.
    Parameters, with k hidden features and v of one feature in `channel`, of C in `spatial`:
    context kernel (1, v, k) and bias; state kernel (1, d, k); kernel (k, 1) and bias (1,).
    Sows both softmaxes: {"channel": (N, C), "spatial": (N, H, W, 1)}.

    Fields:
        hidden_features: k.
        state_features: d, which the released layers always have, or None for a layer without a
            decoder, which has no Wd.
        order: "channel_spatial" as above, or "spatial_channel", where alpha reads x and beta x'.
        bias_in_weights: compute the spatial score as (U + c) . tanh(...), as the released code
            does around its last layer by a misplaced parenthesis. There c has an effect.

    The decoder itself is the caller's.

    Raises InputError for a state that does not fit `state_features`, for an unknown order, and for
    widths below one.
    """

    hidden_features: int = 512
    state_features: int | None = None
    order: str = "channel_spatial"
    bias_in_weights: bool = False
    _: KW_ONLY
    kernel_init: Initializer = official_init

    role = "recalibrate"
    namings = {
        "official": _released("res5c_branch2b"),
        "official_res5c": _released("res5c"),
    }

    official = variant(
        """The released code after its layer res5c_branch2b, whose weights need state_features=d;
        without it the default.""",
    )
    official_res5c = variant(
        """The released code after its last layer, res5c, whose weights need state_features=d;
        misplaced parenthesis included.""",
        bias_in_weights=True,
    )
    spatial_channel = variant(
        "The paper's other order, of which no code was released.", order="spatial_channel"
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False, state: Array | None = None) -> Array:
        """`state`: (N, state_features), of the decoder; zeros if it is not given."""
        self.require_maps(x)
        if self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS)
        batch, height, width, features = x.shape
        if self.state_features is not None and self.state_features < 1:
            raise InputError(
                f"state_features={self.state_features} is below one: use 1 or more, or None for a "
                f"layer without a decoder."
            )
        if state is None and self.state_features is not None:
            state = jnp.zeros((batch, self.state_features))
        elif state is not None and state.shape != (batch, self.state_features):
            raise InputError(
                f"a state of shape {state.shape} does not fit {batch} samples and "
                f"state_features={self.state_features}: give one of shape (N, state_features)."
            )
        positions = height * width

        def softmax(items: Array, **fields) -> Array:
            scores = _Score(self.hidden_features, **self.initialisers, **fields)
            return jax.nn.softmax(scores(items, state), axis=-1)

        attention = {}
        for path in ORDERS[self.order]:
            if path == "channel":
                items = average_pool(x)[:, :, None]
                attention[path] = softmax(items, precision=lax.Precision.HIGHEST, name=path)
                x = rescale(x, features * attention[path])
            else:
                items = x.reshape(batch, positions, features).astype(self.dtype or x.dtype)
                alpha = softmax(items, bias_in_weights=self.bias_in_weights, name=path)
                attention[path] = alpha.reshape(batch, height, width, 1)
                x = rescale(x, positions * attention[path])
        self.sow("intermediates", "attention", attention)
        return x


class _Score(Part):
    """U . tanh(Wc v + b + Wd h) + c for items v (N, M, features) and h (N, d): (N, M)."""

    hidden_features: int
    precision: lax.PrecisionLike = None
    bias_in_weights: bool = False

    @nn.compact
    def __call__(self, items: Array, state: Array | None) -> Array:
        if self.hidden_features < 1:
            raise InputError(f"hidden_features={self.hidden_features} is below one: use 1 or more.")
        wide = at_least_float32(items.dtype)
        project = partial(self.convolution, self.hidden_features)
        context = project(dtype=items.dtype, precision=self.precision, name="context")
        hidden = context(items).astype(wide)
        if state is not None:
            highest = lax.Precision.HIGHEST
            told = project(use_bias=False, dtype=wide, precision=highest, name="state")
            hidden = hidden + told(state[:, None, :])
        shape = (self.hidden_features, 1)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(wide)[:, 0]
        bias = self.param("bias", self.bias_init, (1,), self.param_dtype).astype(wide)
        if self.bias_in_weights:
            kernel = kernel + bias
        # A sum of products, not a matrix product of one column: it is computed along with the tanh.
        scores = jnp.sum(jnp.tanh(hidden) * kernel[None, None, :], axis=-1)
        return scores if self.bias_in_weights else scores + bias[None, :]
