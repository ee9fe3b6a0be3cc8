"""Global context: one pooled vector, transformed, for all positions."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import Conv, kaiming_fan_in
from flaxattn.layers.norm import LayerNorm
from flaxattn.layers.pooling import average_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features

POOLS = ("attention", "average")
FUSIONS = ("scale", "add")
ZERO_INITS = ("layer", "kernel", "nothing")
_BRANCHES = {"scale": "channel_mul_conv", "add": "channel_add_conv"}


class GlobalContext(Mechanism):
    """Global context block: every position receives the same transform of one attentive mean.

        a_j = exp(Wk x_j) / sum_m exp(Wk x_m)      over all positions
        z   = sum_j a_j x_j                        (N, C)
        t   = W2 relu(layer_norm(W1 z))
        y_i = x_i + t                              fusion "add"
        y_i = x_i * sigmoid(t)                     fusion "scale"

    With both fusions each has a transform of its own, and the scaling comes first.

    Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
    ICCVW 2019, arXiv:1904.11492.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the pooled vector and its transform are float32 or
    wider, the convolution to the one channel of a computes in `dtype` or x's.
    Parameters: conv_mask kernel (1, 1, C, 1) and bias; for each fusion, under channel_add_conv or
    channel_mul_conv, _0 kernel (1, 1, C, h) and bias, _1 scale and bias (h,), _3 kernel
    (1, 1, h, C) and bias.
    Sows what there is of {"position": a (N, H, W, 1), "scale": sigmoid(t) (N, C), "add": t (N, C)}.

    Fields:
        reduction: C / h; h is rounded down.
        divisor: if given, h is C / reduction rounded to a multiple of it, at least one multiple.
        pool: "attention" as above, or "average", a_j = 1 / HW without conv_mask.
        fusions: of "scale" and "add", at least one.
        activation: between the transforms' layers, the paper's relu.
        epsilon: of the layer norm.
        zero_init: what starts at zero in the transforms' last layers. "layer": kernel and bias, so
            that "add" starts as the identity and "scale" as x / 2; "kernel": not the bias, which is
            drawn as torch draws it, so that "add" starts with a random vector at all positions;
            "nothing".

    The kernel of conv_mask is drawn from N(0, 2 / C), as by the authors and timm, whatever
    `kernel_init` is.

    Raises InputError where `reduction` leaves no channel, for an `epsilon` not above zero, and for
    unknown pools, fusions and zero_init.
    """

    reduction: int = 16
    divisor: int | None = None
    pool: str = "attention"
    fusions: Sequence[str] = ("add",)
    activation: Callable[[Array], Array] = jax.nn.relu
    epsilon: float = 1e-5
    zero_init: str = "layer"

    role = "context"
    namings = {
        "official": (
            ("channel_add_conv.1", "channel_add_conv_1", "n11"),
            ("channel_mul_conv.1", "channel_mul_conv_1", "n11"),
        ),
        "timm": (
            ("conv_attn", "conv_mask"),
            ("mlp_add.fc1", "channel_add_conv_0"),
            ("mlp_add.norm", "channel_add_conv_1"),
            ("mlp_add.fc2", "channel_add_conv_3"),
            ("mlp_scale.fc1", "channel_mul_conv_0"),
            ("mlp_scale.norm", "channel_mul_conv_1"),
            ("mlp_scale.fc2", "channel_mul_conv_3"),
        ),
    }

    official = variant("The authors' ContextBlock; the default.")
    timm = variant(
        """timm's GlobalContext, its "gc": scales, with another width, epsilon and start.""",
        reduction=8,
        divisor=1,
        epsilon=1e-6,
        fusions=("scale",),
        zero_init="nothing",
    )
    timm_add = variant(
        """timm's GlobalContext that adds, its "gca": no identity at first, for only the last
        kernel starts at zero.""",
        **{**timm.defaults, "fusions": ("add",), "zero_init": "kernel"},
    )

    @property
    def neutral(self) -> Neutral:
        zeros = tuple(f"{_BRANCHES[fusion]}_3" for fusion in self.fusions)
        return Neutral(zeros, gain=2.0 if "scale" in self.fusions else 1.0)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        self._require_legal_fields()
        hidden = reduced_features(x.shape[-1], self.reduction, divisor=self.divisor)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)
        sown = {}

        if self.pool == "attention":
            mask = Conv(
                1,
                dtype=dtype,
                param_dtype=self.param_dtype,
                kernel_init=kaiming_fan_in,
                name="conv_mask",
            )
            sown["position"] = jax.nn.softmax(mask(x).astype(wide), axis=(1, 2))
            pooled = jnp.sum(sown["position"] * x.astype(wide), axis=(1, 2))
        else:
            pooled = average_pool(x).astype(wide)

        y = x.astype(wide)
        if "scale" in self.fusions:
            sown["scale"] = jax.nn.sigmoid(self._transform(pooled, hidden, _BRANCHES["scale"]))
            y = y * sown["scale"][:, None, None, :]
        if "add" in self.fusions:
            sown["add"] = self._transform(pooled, hidden, _BRANCHES["add"])
            y = y + sown["add"][:, None, None, :]
        self.sow("intermediates", "attention", sown)
        return y.astype(x.dtype)

    def _transform(self, pooled: Array, hidden: int, branch: str) -> Array:
        """W2 activation(layer_norm(W1 z)): (N, C) -> (N, C)."""
        conv = partial(self.convolution, precision=lax.Precision.HIGHEST, dtype=pooled.dtype)

        def drawn_as_torch(key, shape, dtype=jnp.float32):
            bound = hidden**-0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        zeros = nn.initializers.zeros
        biases = {"layer": zeros, "kernel": drawn_as_torch, "nothing": self.bias_init}
        kernel_init = self.kernel_init if self.zero_init == "nothing" else zeros
        first = conv(hidden, name=f"{branch}_0")
        norm = LayerNorm(
            epsilon=self.epsilon,
            dtype=pooled.dtype,
            param_dtype=self.param_dtype,
            name=f"{branch}_1",
        )
        last = conv(
            pooled.shape[-1],
            kernel_init=kernel_init,
            bias_init=biases[self.zero_init],
            name=f"{branch}_3",
        )
        z = pooled[:, None, None, :]
        return last(self.activation(norm(first(z))))[:, 0, 0, :]

    def _require_legal_fields(self):
        if self.epsilon <= 0:
            raise InputError(
                f"epsilon={self.epsilon} is not positive: use a small one, such as 1e-5."
            )
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        if self.zero_init not in ZERO_INITS:
            raise unknown("zero_init", self.zero_init, ZERO_INITS)
        if not self.fusions:
            raise InputError(
                "fusions=() leaves nothing to do: use ('add',), ('scale',) or ('scale', 'add')."
            )
        for fusion in self.fusions:
            if fusion not in FUSIONS:
                raise unknown("fusion", fusion, FUSIONS)
