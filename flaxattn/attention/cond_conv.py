"""Conditionally parameterised convolution."""

import jax
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import AsConvolution, Mechanism, variant
from flaxattn.attention.parts.mixture import mixed_convolution
from flaxattn.errors import InputError
from flaxattn.layers.pooling import average_pool
from flaxattn.layers.precision import at_least_float32


class CondConv(Mechanism):
    """CondConv: each sample convolves with its own weighted sum of expert kernels.

        a = sigmoid(R mean_hw x)                     (routing)
        y = (sum_e a_e W_e) * x                      (Eq. 1)

    Yang, Bender, Le, Ngiam, "CondConv: Conditionally Parameterized Convolutions for Efficient
    Inference", NeurIPS 2019, arXiv:1904.04971.

    (N, H, W, C) -> (N, H', W', features) in x's dtype, with the call shape of `nn.Conv`. The
    convolution computes in `dtype` or x's, the routing and the mixing in float32 or wider.
    Parameters: kernels (E, k, k, C / groups, features), biases (E, features) if any, routing_fn
    kernel (1, 1, C, E) and bias.
    Sows the routing weights (N, E). They need not sum to one.

    EfficientNet's blocks route once for their three convolutions: pass `routing`, weights (N, E),
    to each call instead, and these layers have no routing_fn of their own. Neither has timm's
    CondConv2d: its tensors, weight and bias, load without one.

    Fields:
        features: channels of the output.
        kernel_size, strides, padding, dilation, groups: of the convolution; as `Conv` it keeps the
            size at stride 1 without `padding`.
        num_experts: E.
        use_bias: a bias from each expert, mixed like the kernels.
        kernel_init: of each expert's kernel, and of routing_fn.

    Raises InputError for an even kernel without padding, a kernel larger than the padded map, sizes
    that are not integers or too small, groups that do not divide the channels, no expert, and a
    `routing` of another shape.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    padding: int | None = None
    dilation: int = 1
    groups: int = 1
    num_experts: int = 8
    use_bias: bool = False

    role = "convolution"
    namings = {
        "timm": (
            ("conv.weight", "kernels", "flat"),
            ("conv.bias", "biases"),
            ("routing_fn", "routing_fn", "linear"),
        ),
        # CondConv2d itself, whose routing is its block's.
        "timm_layer": (
            ("weight", "kernels", "flat"),
            ("bias", "biases"),
            ("", "routing_fn", "elsewhere"),
        ),
    }

    timm = variant(
        "timm's CondConv2d with the routing of its CondConvResidual: four experts.",
        num_experts=4,
    )

    @property
    def as_convolution(self) -> AsConvolution:
        """The same kernel E times, each with the weight sigmoid(0)."""
        biases = ("biases",) if self.use_bias else ()
        return AsConvolution(("kernels",), zeros=("routing_fn", *biases), gain=2 / self.num_experts)

    @nn.compact
    def __call__(self, x: Array, train: bool = False, routing: Array | None = None) -> Array:
        self.require_maps(x)
        if self.num_experts < 1:
            raise InputError(f"num_experts={self.num_experts} is below one: use 1 or more.")
        if routing is None:
            routing_fn = self.convolution(
                self.num_experts,
                precision=lax.Precision.HIGHEST,
                dtype=at_least_float32(self.dtype or x.dtype),
                name="routing_fn",
            )
            logits = routing_fn(average_pool(x)[:, None, None, :])
            routing = jax.nn.sigmoid(logits[:, 0, 0, :])
        elif routing.shape != (x.shape[0], self.num_experts):
            raise InputError(
                f"routing has the shape {routing.shape}: pass a weight for each sample and expert, "
                f"{(x.shape[0], self.num_experts)}."
            )
        self.sow("intermediates", "attention", routing)
        return mixed_convolution(self, x, routing, padding=self.padding)
