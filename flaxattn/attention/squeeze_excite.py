"""Squeeze-and-excitation."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.bottleneck import bottleneck, reduced_features
from flaxattn.attention.pooling import average_pool, rescale
from flaxattn.conv import Initializer, torch_default
from flaxattn.precision import at_least_float32


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: each channel is rescaled by a gate read from all channels' averages.

        z_c = mean_hw x_hwc                     (Eq. 2)
        s   = sigmoid(W2 relu(W1 z))            (Eq. 3)
        y   = s * x                             (Eq. 4)

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: fc1 kernel (1, 1, C, h), fc2 kernel (1, 1, h, C), and their biases.

    Fields:
        reduction: C / h; h is rounded down.
        use_bias: biases in both layers, as in the authors' Caffe model. The paper's journal
            version drops them in ResNets.
        divisor: if given, h is C / reduction rounded to a multiple of it, at least one multiple.
        dtype: of the gate's arithmetic, if wider than float32.

    Deviation: biases start at zero, where torch draws them from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Raises InputError where `reduction` leaves no channel; torch's bias-free version then halves x.
    """

    reduction: int = 16
    use_bias: bool = True
    divisor: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_default
    bias_init: Initializer = nn.initializers.zeros

    role: ClassVar[str] = "recalibrate"
    variants: ClassVar[tuple[str, ...]] = ("article_s0", "article_s1", "article_s2", "timm")
    namings: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {
        "timm": (),
        "articles": (("fc.0", "fc1", "linear"), ("fc.2", "fc2", "linear")),
    }

    @classmethod
    def article_s0(cls, **fields) -> "SqueezeExcite":
        """Article 0's SEAttention: no biases."""
        return cls(**{"use_bias": False, **fields})

    @classmethod
    def article_s1(cls, **fields) -> "SqueezeExcite":
        """Article 1's SEBlock: biases; the default."""
        return cls(**fields)

    @classmethod
    def article_s2(cls, **fields) -> "SqueezeExcite":
        """Article 2's SeNet: article 0's layer under another name."""
        return cls.article_s0(**fields)

    @classmethod
    def timm(cls, **fields) -> "SqueezeExcite":
        """timm's SEModule: biases; the hidden width is rounded to a multiple of 8."""
        return cls(**{"divisor": 8, **fields})

    @nn.compact
    def gate(self, pooled: Array) -> Array:
        """Eq. 3 on averages: (N, C) -> (N, C), within (0, 1)."""
        features = pooled.shape[-1]
        hidden = reduced_features(features, self.reduction, divisor=self.divisor)
        dtype = at_least_float32(self.dtype or pooled.dtype)

        logits = bottleneck(
            pooled,
            hidden,
            features,
            use_bias=self.use_bias,
            dtype=dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        return jax.nn.sigmoid(logits)

    def __call__(self, x: Array, train: bool = False) -> Array:
        gate = self.gate(average_pool(x))
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
