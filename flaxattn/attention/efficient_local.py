"""Efficient local attention."""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv
from flaxattn.layers.norm import GroupNorm
from flaxattn.layers.pooling import rescale, strip_pool
from flaxattn.layers.precision import at_least_float32


class EfficientLocal(Mechanism):
    """Efficient local attention: gates of rows and columns, by convolution along the strips.

        z_h = mean_w x, z_w = mean_h x
        g_h = sigmoid(group_norm(conv1d_k(z_h)))
        g_w = sigmoid(group_norm(conv1d_k(z_w)))
        y   = x * g_h * g_w

    Xu, Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", arXiv
    2024, arXiv:2403.01123.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gates are computed in float32 or wider.
    Parameters: conv kernel (k, channels_per_group, C) and gn (C,); where rows and columns have
    their own, conv_h kernel (k, 1, channels_per_group, C), conv_w kernel
    (1, k, channels_per_group, C), norm_h and norm_w (C,).
    Sows both gates: {"height": (N, H, 1, C), "width": (N, 1, W, C)}.

    The four sizes of the paper; the default is `base`:

        | variant | k | channels a group of the convolution | groups of the norm |
        |---------|---|-------------------------------------|--------------------|
        | tiny    | 5 | 1                                   | 32                 |
        | base    | 7 | 1                                   | 16                 |
        | small   | 5 | 8                                   | 16                 |
        | large   | 7 | 8                                   | 16                 |
        | timm    | 7 | 1                                   | 1                  |

    Fields:
        kernel_size: k, odd.
        channels_per_group: of the convolution's input, 1 for a depthwise one.
        num_groups: of the group norm.
        shared: one convolution and one norm for rows and columns.
        activation: between norm and sigmoid, or None.
        use_bias: biases in the convolutions.
        skip: return x + y.
        dtype: of the gates' arithmetic, if wider than float32.

    Its authors released no code. That rows and columns share their weights, and the names of these,
    are those of the implementations in circulation.

    Raises InputError for an even kernel, and where either kind of group does not divide C.
    """

    kernel_size: int = 7
    channels_per_group: int = 1
    num_groups: int = 16
    shared: bool = True
    activation: Callable[[Array], Array] | None = None
    use_bias: bool = False
    skip: bool = False

    role = "recalibrate"
    namings = {
        "circulating": (),
        "timm": (),
    }

    tiny = variant("The paper's ELA-T.", kernel_size=5, num_groups=32)
    base = variant("The paper's ELA-B; the default.")
    small = variant("The paper's ELA-S.", kernel_size=5, channels_per_group=8)
    large = variant("The paper's ELA-L.", channels_per_group=8)
    timm = variant(
        "timm's EfficientLocalAttn: own weights for rows and columns, SiLU before the sigmoid.",
        num_groups=1,
        shared=False,
        activation=jax.nn.silu,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        features = x.shape[-1]
        for field in ("channels_per_group", "num_groups"):
            value = getattr(self, field)
            if value < 1 or features % value:
                raise InputError(
                    f"{field}={value} does not divide the {features} channels: use a divisor of "
                    f"{features}."
                )
        dtype = at_least_float32(self.dtype or x.dtype)

        conv = partial(
            self.convolution,
            features,
            groups=features // self.channels_per_group,
            use_bias=self.use_bias,
            precision=lax.Precision.HIGHEST,
            dtype=dtype,
        )
        norm = partial(GroupNorm, self.num_groups, dtype=dtype, param_dtype=self.param_dtype)

        def gate(strips: Array, conv: Conv, norm: nn.Module) -> Array:
            along = strips.reshape(strips.shape[0], -1, features) if self.shared else strips
            logits = norm(conv(along))
            if self.activation is not None:
                logits = self.activation(logits)
            return jax.nn.sigmoid(logits).reshape(strips.shape)

        rows, columns = strip_pool(x)
        k = self.kernel_size
        if self.shared:
            by_rows = by_columns = conv(k, name="conv"), norm(name="gn")
        else:
            by_rows = conv((k, 1), name="conv_h"), norm(name="norm_h")
            by_columns = conv((1, k), name="conv_w"), norm(name="norm_w")
        height, width = gate(rows, *by_rows), gate(columns, *by_columns)
        self.sow("intermediates", "attention", {"height": height, "width": width})
        y = rescale(x, height, width)
        return x + y if self.skip else y
