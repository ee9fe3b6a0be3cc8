"""Pyramid squeeze attention."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import InputError
from flaxattn.layers.conv import kaiming_fan_out
from flaxattn.layers.pooling import average_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class PyramidSqueeze(Mechanism):
    """Pyramid squeeze attention: branches of several kernel sizes side by side, in proportion.

        u_i = conv_i(x)                              S branches of C' / S features (Eq. 1)
        s_i = sigmoid(W2 relu(W1 mean_hw u_i))       W1 and W2 are the same for all (Eq. 3)
        a   = softmax_i(s)                           (Eq. 5)
        y   = [a_1 * u_1; ...; a_S * u_S]            (Eq. 6, 7)

    Zhang, Zu, Lu, Zou, Meng, "EPSANet: An Efficient Pyramid Squeeze Attention Block on
    Convolutional Neural Network", ACCV 2022, arXiv:2105.14447.

    (N, H, W, C) -> (N, H', W', features) in x's dtype, with the call shape of `nn.Conv`. The
    convolutions compute in `dtype` or x's, the proportions in float32 or wider.
    Parameters: conv1 ... convS kernel (k_i, k_i, C / groups_i, features / S); fc1 kernel
    (1, 1, features / S, h), fc2 kernel (1, 1, h, features / S), and their biases.
    Sows the proportions (N, S, features / S), conv1's first.

    A sigmoid within a softmax keeps the proportions close together: of four branches, each has
    between 0.11 and 0.48 of a channel.

    Fields:
        features: channels of the output, a multiple of S. With the other defaults 64 at least.
        strides: of all convolutions.
        kernel_sizes: one odd size for each branch.
        groups: one number for each branch, or one for all.
        reduction: features / S / h; h is rounded down.
        reverse: the last branch's output first. The released code puts each branch in front of
            those before it, and its weights want that order.

    Raises InputError for features that the branches cannot share, groups that do not divide the
    channels, even kernels, and where `reduction` leaves no channel of a branch.
    """

    features: int
    strides: int = 1
    kernel_sizes: Sequence[int] = (3, 5, 7, 9)
    groups: int | Sequence[int] = (1, 4, 8, 16)
    reduction: int = 16
    reverse: bool = False

    role = "convolution"
    namings = {
        "official": (
            ("conv_1", "conv1"),
            ("conv_2", "conv2"),
            ("conv_3", "conv3"),
            ("conv_4", "conv4"),
            ("se.fc1", "fc1"),
            ("se.fc2", "fc2"),
        ),
    }

    official = variant(
        "The authors' PSAModule: the branches in reverse order, and their EPSANet's kernels.",
        reverse=True,
        kernel_init=kaiming_fan_out,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        branch_groups = self._groups_of_branches()
        share = self._features_of_a_branch(x.shape[-1], branch_groups)
        dtype = self.dtype or x.dtype
        wide = at_least_float32(dtype)

        branches = []
        for i, (size, groups) in enumerate(zip(self.kernel_sizes, branch_groups, strict=True)):
            conv = self.convolution(
                share,
                kernel_size=size,
                strides=self.strides,
                groups=groups,
                use_bias=False,
                dtype=dtype,
                name=f"conv{i + 1}",
            )
            branches.append(conv(x))

        logits = bottleneck(
            jnp.stack([average_pool(u) for u in branches], axis=1),
            self._hidden_width(share),
            share,
            dtype=wide,
            **self.initialisers,
        )
        weights = jax.nn.softmax(jax.nn.sigmoid(logits), axis=1)
        self.sow("intermediates", "attention", weights)
        parts = [weights[:, i, None, None, :] * u.astype(wide) for i, u in enumerate(branches)]
        return jnp.concatenate(parts[::-1] if self.reverse else parts, axis=-1).astype(x.dtype)

    def _groups_of_branches(self) -> Sequence[int]:
        count = len(self.kernel_sizes)
        groups = self.groups if isinstance(self.groups, Sequence) else (self.groups,) * count
        if not count or len(groups) != count:
            raise InputError(
                f"kernel_sizes={self.kernel_sizes} and groups={self.groups} make {count} and "
                f"{len(groups)} branches: give one of each for every branch."
            )
        return groups

    def _features_of_a_branch(self, channels: int, branch_groups: Sequence[int]) -> int:
        count = len(self.kernel_sizes)
        if self.features < 1 or self.features % count:
            raise InputError(
                f"features={self.features} are not to be shared by {count} branches: use a "
                f"multiple of {count}."
            )
        share = self.features // count
        self._hidden_width(share)
        for groups in branch_groups:
            if groups < 1 or channels % groups or share % groups:
                common = math.gcd(groups, channels, share) or 1
                raise InputError(
                    f"groups={groups} of a branch must divide both the {channels} input channels "
                    f"and the branch's {share} of {self.features} features: use {common} or "
                    f"another common divisor there, or more features."
                )
        return share

    def _hidden_width(self, share: int) -> int:
        if self.reduction > share:
            raise InputError(
                f"reduction={self.reduction} leaves no channel of the {share} that a branch has of "
                f"features={self.features}: use a reduction of at most {share}, or at least "
                f"{self.reduction * len(self.kernel_sizes)} features."
            )
        return reduced_features(share, self.reduction)
