"""Selective kernel convolution."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import AsConvolution, Mechanism, Part, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import InputError
from flaxattn.layers.conv import (
    Initializer,
    kaiming_fan_in,
    kaiming_fan_out,
    require_odd,
    torch_default,
)
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class SelectiveKernel(Mechanism):
    """Selective kernel convolution: several sizes of kernel, mixed channel by channel.

        u_i = relu(bn(conv_i(x)))                    (split)
        z   = mean_hw sum_i u_i                      (Eq. 1, 2)
        a   = softmax_i(W2 relu(bn(W1 z)))           (Eq. 3, 5)
        y   = sum_i a_i * u_i                        (Eq. 6)

    Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019, arXiv:1903.06586.

    (N, H, W, C) -> (N, H', W', features) in x's dtype, with the call shape of `nn.Conv`. The
    convolutions compute in `dtype` or x's, the branch weights in float32 or wider.
    Parameters, under timm's names: for each branch paths_i conv kernel (k, k, C / groups, features)
    and bn; attn fc_reduce kernel (1, 1, features, h), bn, and fc_select kernel
    (1, 1, h, branches * features).
    Sows the branch weights (N, branches, features).

    The defaults are the paper's unit. With a `norm` it ends in a mixture of ReLUs, and in a
    residual block takes the place of the normalisation and ReLU after the convolution too.

        | variant    | branches                     | hidden width        | after each convolution |
        |------------|------------------------------|---------------------|------------------------|
        | default    | 3x3, 5x5, in 32 groups       | max(C / 16, 32)     | BatchNorm, ReLU        |
        | official   | the same                     | the same            | BatchNorm, m = 0.95    |
        | insight    | 3x3 dense, 3x3 in 32 groups  | C / 16              | BatchNorm, ReLU        |
        | timm       | 3x3, 5x5, each half of x     | C / 16, whole eights| BatchNorm, ReLU        |
        | article_s2 | 3x3, 5x5, dense, with biases | C / 16              | nothing                |

    Fields:
        features: channels of the output.
        strides: of all convolutions.
        kernel_sizes: one odd size for each branch; (3, 5, 7) makes three of them.
        dilated: take 3x3 kernels, dilated to the extent of the larger sizes, as the paper does.
        groups: of the convolutions: of all, or one number for each branch.
        split_input: give each branch its share of x's channels instead of all of them.
        reduction: features / h; h is rounded down.
        min_hidden: h is at least so many.
        divisor: if given, h is rounded to a multiple of it instead, as timm's make_divisible.
        use_bias: biases in the convolutions. The two layers of the weights have none.
        softmax: normalise the weights over the branches. Article 2 creates the softmax but never
            calls it, so its weights have no bound, any sign, and do not sum to one. A checkpoint
            fits with and without.
        fc_init: of the two layers of the weights; `kernel_init` is of the convolutions.
        norm: makes the normalisations. None leaves them out, and the ReLUs of the branches, so
            that a residual block's own are to follow.

    Raises InputError for groups that do not divide the channels, even kernels, an input that does
    not split, and where `reduction` leaves no channel; with `norm`, in train mode, for a batch of
    one, for the second normalisation is over the batch alone.
    """

    features: int
    strides: int = 1
    kernel_sizes: Sequence[int] = (3, 5)
    dilated: bool = True
    groups: int | Sequence[int] = 32
    split_input: bool = False
    reduction: int = 16
    min_hidden: int = 32
    divisor: int | None = None
    use_bias: bool = False
    softmax: bool = True
    fc_init: Initializer = torch_default
    norm: Callable[..., nn.Module] | None = BatchNorm

    role = "convolution"
    timm_pairs = True
    namings = {
        "timm": (),
        "articles": (
            ("conv3x3", "paths_0.conv"),
            ("conv5x5", "paths_1.conv"),
            ("fc.0", "attn.fc_reduce", "linear"),
            ("fc.2", "attn.fc_select", "linear"),
        ),
        "insight": (
            ("conv2", "paths_0.conv"),
            ("bn2", "paths_0.bn"),
            ("conv2g", "paths_1.conv"),
            ("bn2g", "paths_1.bn"),
            ("conv_fc1", "attn.fc_reduce"),
            ("bn_fc1", "attn.bn"),
            ("conv_fc2", "attn.fc_select"),
        ),
    }

    official = variant(
        """The authors' Caffe model: the paper's unit with its initial weights and statistics.

        Kernels from N(0, 2 / fan_in), the layers of the weights from N(0, 0.01^2), so that the
        branches start with almost equal shares; running statistics that move by 0.05.
        """,
        fc_init=nn.initializers.normal(0.01),
        kernel_init=kaiming_fan_in,
        norm=partial(BatchNorm, momentum=0.95),
    )
    insight = variant(
        "The first author's PytorchInsight: a dense 3x3 beside one in 32 groups, none dilated.",
        kernel_sizes=(3, 3),
        groups=(1, 32),
        min_hidden=0,
        fc_init=kaiming_fan_out,
        kernel_init=kaiming_fan_out,
    )
    timm = variant(
        "timm's SelectiveKernel: dense branches, each of its share of the input channels.",
        groups=1,
        split_input=True,
        min_hidden=0,
        divisor=8,
    )
    article_s2 = variant(
        """Article 2's SkNet: plain biased convolutions, and a softmax that is never applied.

        With softmax=True it is what the article meant. No published model has this unit.
        """,
        groups=1,
        min_hidden=0,
        use_bias=True,
        softmax=False,
        norm=None,
    )

    @property
    def activates(self) -> bool:
        """Whether it ends in a normalisation and a ReLU of its own."""
        return self.norm is not None

    @property
    def as_convolution(self) -> AsConvolution:
        """The same convolution and norm in every branch, whose weights sum to one."""
        if self.dilated and max(self.kernel_sizes) > 3:
            raise InputError(
                f"dilated=True: the 3x3 kernels of kernel_sizes={tuple(self.kernel_sizes)} cannot "
                f"compute a convolution that is not dilated: use dilated=False."
            )
        if not self.softmax:
            raise InputError(
                "softmax=False: branches whose weights do not sum to one cannot compute one "
                "convolution: use softmax=True."
            )
        branches = [f"paths_{i}" for i in range(len(self.kernel_sizes))]
        return AsConvolution(
            kernels=tuple(f"{branch}.conv.kernel" for branch in branches),
            norms=tuple(f"{branch}.bn" for branch in branches if self.activates),
            zeros=tuple(f"{branch}.conv.bias" for branch in branches if self.use_bias),
        )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        groups = self._groups_of_branches()
        inputs = self._inputs_of_branches(x)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        branches = []
        for i, (size, group) in enumerate(zip(self.kernel_sizes, groups, strict=True)):
            require_odd(size)
            extent = max((size - 1) // 2, 1) if self.dilated else 1
            conv = self.convolution(
                self.features,
                kernel_size=min(size, 3) if self.dilated else size,
                strides=self.strides,
                dilation=extent,
                groups=group,
                use_bias=self.use_bias,
                dtype=dtype,
                parent=None,
            )
            branch = _Branch(conv, self._norm(dtype), name=f"paths_{i}")
            branches.append(branch(inputs[i], train))

        attn = _BranchWeights(
            hidden=reduced_features(
                self.features,
                self.reduction,
                divisor=self.divisor,
                at_least=self.min_hidden,
                round_limit=0.9,
            ),
            branches=len(branches),
            softmax=self.softmax,
            dtype=wide,
            param_dtype=self.param_dtype,
            kernel_init=self.fc_init,
            norm=self._norm(wide),
            name="attn",
        )
        weights = attn(jnp.asarray(sum(average_pool(u) for u in branches)), train)
        self.sow("intermediates", "attention", weights)
        shares = jnp.split(weights[:, :, None, None, :], len(branches), axis=1)
        y = sum(a[:, 0] * u.astype(wide) for a, u in zip(shares, branches, strict=True))
        return jnp.asarray(y).astype(x.dtype)

    def _norm(self, dtype: DTypeLike) -> Callable[..., nn.Module] | None:
        if self.norm is None:
            return None
        return partial(self.norm, dtype=dtype, param_dtype=self.param_dtype)

    def _groups_of_branches(self) -> Sequence[int]:
        count = len(self.kernel_sizes)
        if not count:
            raise InputError("kernel_sizes=() makes 0 branches: name at least one odd size.")
        if not isinstance(self.groups, Sequence):
            return (self.groups,) * count
        if len(self.groups) != count:
            raise InputError(
                f"groups={self.groups} are {len(self.groups)} for {count} branches: give one "
                f"number for all, or one for each of kernel_sizes={self.kernel_sizes}."
            )
        return self.groups

    def _inputs_of_branches(self, x: Array) -> list[Array]:
        count = len(self.kernel_sizes)
        if not self.split_input:
            return [x] * count
        if x.shape[-1] % count:
            raise InputError(
                f"split_input=True cannot share {x.shape[-1]} channels between {count} branches: "
                f"use a multiple of {count} channels, or split_input=False."
            )
        return jnp.split(x, count, axis=-1)


class _Branch(nn.Module):
    """A convolution, its normalisation and its ReLU, or the convolution alone."""

    conv: nn.Module
    norm: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.conv(x)
        return y if self.norm is None else jax.nn.relu(self.norm(name="bn")(y, train))


class _BranchWeights(Part):
    """Which share of each channel a branch gives: (N, C) -> (N, branches, C)."""

    hidden: int
    branches: int
    softmax: bool
    norm: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, pooled: Array, train: bool) -> Array:
        features = pooled.shape[-1]

        def activation(z: Array) -> Array:
            return jax.nn.relu(z if self.norm is None else self.norm(name="bn")(z, train))

        logits = bottleneck(
            pooled,
            self.hidden,
            self.branches * features,
            names=("fc_reduce", "fc_select"),
            activation=activation,
            use_bias=False,
            dtype=self.dtype,
            **self.initialisers,
        ).reshape(-1, self.branches, features)
        return jax.nn.softmax(logits, axis=1) if self.softmax else logits
