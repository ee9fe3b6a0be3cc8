"""The non-local block: each position adds a mean of all positions' features."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Namings, Neutral, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import kaiming_fan_out
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import maximum
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
SUB_SAMPLES = ("before", "after")
SCALES = ("hidden", "input")

# Both leave the block an identity at the start, and let gradients into it.
zero_batch_norm = partial(BatchNorm, scale_init=nn.initializers.zeros)
_small = nn.initializers.normal(0.01)


_CONCATENATION = ("concat_project.0.weight", "concat_project", "1n11")
_MMCV = (
    ("theta.conv", "theta"),
    ("conv_out.conv", "out"),
    ("conv_out.bn", "bn"),
    ("concat_project.conv.weight", "concat_project", "1n11"),
)
_AFTER = (("g.0", "g"), ("phi.0", "phi"), _CONCATENATION)
# By `sub_sample`, for a layer with a pool is another function of the same weights.
_NAMINGS: dict[str | None, Namings] = {
    "after": {
        "alexhex7": (*_AFTER, ("W.0", "out"), ("W.1", "bn")),
        "alexhex7_no_norm": (*_AFTER, ("W", "out")),
        "mmcv_pool": (("g.0.conv", "g"), ("phi.0.conv", "phi"), *_MMCV),
    },
    None: {
        "alexhex7_no_pool": (("W.0", "out"), ("W.1", "bn"), _CONCATENATION),
        "alexhex7_no_pool_no_norm": (("W", "out"), _CONCATENATION),
        "mmcv": (("g.conv", "g"), ("phi.conv", "phi"), *_MMCV),
        "timm": (("t", "theta"), ("p", "phi"), ("z", "out"), ("norm", "bn")),
    },
}


class NonLocal(Mechanism):
    """Non-local block: z_i = x_i + norm(W y_i) with y_i = sum_j f(x_i, x_j) g(x_j) / sum_j f.

    With theta, phi, g: C -> m and W: m -> C, all 1x1 convolutions, the weights of g(x_j) are

        mode                  f(x_i, x_j)                     weights of position i
        embedded_gaussian     exp(theta_i . phi_j)            softmax over j     (Eq. 3)
        gaussian              exp(x_i . x_j)                  softmax over j     (Eq. 2)
        dot_product           theta_i . phi_j                 f / number of keys (Eq. 4)
        concatenation         relu(w . [theta_i, phi_j])      f / number of keys (Eq. 5)

    At first norm's scale, or W where there is no norm, is zero: the block is the identity.

    Wang, Girshick, Gupta, He, "Non-local Neural Networks", CVPR 2018, arXiv:1711.07971.

    (N, *spatial, C) -> the same in x's dtype, with one to three spatial axes: sequences, images,
    videos. The convolutions and both products over the map take `dtype` or x's and multiply in the
    platform's default precision (see `Conv`), their sums and the softmax are float32 or wider.
    Parameters: theta, phi, g kernels (1, ..., C, m), out kernel (1, ..., m, C), and their biases;
    bn, if there is a norm; in mode concatenation concat_project (2m,), theta's half first; in mode
    gaussian neither theta nor phi. Sows the weights (N, positions, keys).

        | variant  | m                  | scale     | keys and values          | W's norm      |
        |----------|--------------------|-----------|--------------------------|---------------|
        |          | floor(C / 2)       | 1         | all positions            | BatchNorm     |
        | official | floor(C / 2)       | m^(-1/2)  | pooled, then convolved   | BatchNorm     |
        | alexhex7 | floor(C / 2)       | 1         | convolved, then pooled   | BatchNorm     |
        | mmcv     | floor(C / 2)       | m^(-1/2)  | all positions            | none          |
        | timm     | C / 8 in eights    | C^(-1/2)  | all positions            | BatchNorm     |

    Fields:
        mode: f, one of the four.
        reduction: C / m; m is rounded down.
        divisor: if given, m is C / reduction rounded to a multiple of it, by no more than a tenth
            downwards.
        sub_sample: max pooling by two along the last two axes, or the only one, of keys and values:
            "before" their convolutions or "after" them, which is another function; None for none.
            An odd last row or column is left out.
        scale: of the embedded Gaussian's energies: "hidden" for m^(-1/2), "input" for C^(-1/2).
            The other modes are never scaled. A file of weights does not say it.
        out_bias: a bias in W.
        query_chunk: positions whose weights exist at one time, or None for all of them: with it
            memory grows with the number of positions instead of its square (see `attend`).
        norm: what normalises W's output, or None; called as
            norm(dtype=..., param_dtype=..., name="bn")(y, train). Its scale should start at zero.

    Raises InputError for unknown modes, sub-samplings and scales, for maps of none or more than
    three spatial axes, for maps that sub-sampling leaves empty, where `reduction` leaves no channel
    (AlexHex7 and mmcv then keep one), and for a `query_chunk` below one.
    """

    mode: str = "embedded_gaussian"
    reduction: int = 2
    divisor: int | None = None
    sub_sample: str | None = None
    scale: str | None = None
    out_bias: bool = True
    query_chunk: int | None = None
    norm: Callable[..., nn.Module] | None = zero_batch_norm

    role = "context"
    official = variant(
        "The authors' Caffe2 code as configured: pools first, scaled energies, N(0, 0.01^2).",
        sub_sample="before",
        scale="hidden",
        kernel_init=_small,
    )
    alexhex7 = variant(
        "AlexHex7's Non-local_pytorch, the port most weights in torch are of: pools last.",
        sub_sample="after",
    )
    mmcv = variant(
        """mmcv's NonLocal1d, 2d, 3d: no norm unless asked for, and then no bias before it:
        norm=zero_batch_norm, out_bias=False.""",
        scale="hidden",
        kernel_init=_small,
        norm=None,
    )
    timm = variant(
        "timm's NonLocalAttn: narrower, and energies scaled by the width of x.",
        reduction=8,
        divisor=8,
        scale="input",
        kernel_init=kaiming_fan_out,
    )

    @property
    def namings(self) -> Namings:
        """Both libraries count g and phi as members of a pair where a pool follows them."""
        return _NAMINGS.get(self.sub_sample, {})

    @property
    def neutral(self) -> Neutral:
        return Neutral(("out",) if self.norm is None else ("bn",))

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x, axes=(3, 4, 5))
        for given, kind, known in (
            (self.mode, "mode", MODES),
            (self.sub_sample, "sub_sample", (None, *SUB_SAMPLES)),
            (self.scale, "scale", (None, *SCALES)),
        ):
            if given not in known:
                raise unknown(kind, given, [name for name in known if name])
        batch, *spatial, features = x.shape
        hidden = reduced_features(features, self.reduction, divisor=self.divisor, round_limit=0.9)
        dtype = self.dtype or x.dtype
        conv = partial(self.convolution, dtype=dtype)

        def flat(maps: Array) -> Array:
            return maps.reshape(batch, -1, maps.shape[-1])

        before, after = (
            max_pool_by_two if self.sub_sample == when else lambda maps: maps
            for when in SUB_SAMPLES
        )
        sources = before(x)
        value = flat(after(conv(hidden, name="g")(sources)))
        if self.mode == "gaussian":
            query, key = flat(x.astype(dtype)), flat(after(sources).astype(dtype))
        else:
            query = flat(conv(hidden, name="theta")(x))
            key = flat(after(conv(hidden, name="phi")(sources)))
        if self.mode == "concatenation":
            query, key = self._separated(query, key)

        keys = key.shape[1]
        normalise = {
            "dot_product": lambda energy: energy / keys,
            "concatenation": lambda energy: jax.nn.relu(energy) / keys,
        }.get(self.mode, jax.nn.softmax)
        scale = 1.0
        if self.mode == "embedded_gaussian" and self.scale is not None:
            scale = (hidden if self.scale == "hidden" else features) ** -0.5
        y = attend(
            self, query, key, value, scale=scale, normalise=normalise, query_chunk=self.query_chunk
        )
        y = y.astype(dtype).reshape(batch, *spatial, hidden)

        init = self.kernel_init if self.norm is not None else nn.initializers.zeros
        y = conv(features, use_bias=self.out_bias, kernel_init=init, name="out")(y)
        if self.norm is not None:
            wide = at_least_float32(dtype)
            y = self.norm(dtype=wide, param_dtype=self.param_dtype, name="bn")(y, train)
        return x + y.astype(x.dtype)

    def _separated(self, query: Array, key: Array) -> tuple[Array, Array]:
        """Vectors of two whose products are w . [theta_i, phi_j], a sum of two scalars."""
        hidden = query.shape[-1]
        weights = self.param(
            "concat_project",
            lambda rng, shape, dtype: self.kernel_init(rng, (*shape, 1), dtype)[:, 0],
            (2 * hidden,),
            self.param_dtype,
        ).astype(query.dtype)
        of_query, of_key = query @ weights[:hidden, None], key @ weights[hidden:, None]
        return (
            jnp.concatenate([of_query, jnp.ones_like(of_query)], axis=-1),
            jnp.concatenate([jnp.ones_like(of_key), of_key], axis=-1),
        )


def max_pool_by_two(maps: Array) -> Array:
    """Maxima of the pairs along the only, or of the squares along the last two, spatial axes.

    Where several positions hold one its gradient goes to the first, row by row, as in torch's
    max pooling.
    """
    # The last axis first: the other way round the first would be sought column by column.
    for axis in reversed(range(max(1, maps.ndim - 3), maps.ndim - 1)):
        size = maps.shape[axis]
        if size < 2:
            raise InputError(
                f"sub-sampling by two leaves nothing of a map of shape {maps.shape}: use "
                f"sub_sample=None, or at least two positions along axis {axis}."
            )
        halves = (*maps.shape[:axis], size // 2, 2, *maps.shape[axis + 1 :])
        maps = jax.lax.slice_in_dim(maps, 0, size // 2 * 2, axis=axis).reshape(halves)
        maps = maximum(maps, axis + 1).squeeze(axis + 1)
    return maps
