"""Triplet attention: one spatial gate along each pair of the axes C, H and W."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.spatial_attention import SpatialAttention
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.precision import at_least_float32


class TripletAttention(Mechanism):
    """Triplet attention: the mean of three copies of x, each gated over two of its axes C, H, W.

        s_cw = sigmoid(norm(conv_k([max_h x; mean_h x])))     a gate for each c and w
        s_hc = sigmoid(norm(conv_k([max_w x; mean_w x])))     a gate for each h and c
        s_hw = sigmoid(norm(conv_k([max_c x; mean_c x])))     a gate for each h and w
        y    = (s_cw * x + s_hc * x + s_hw * x) / 3

    Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention Module",
    WACV 2021, arXiv:2010.03045.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; gates and mean are computed in float32 or wider.
    Parameters: those of SpatialAttention under `cw`, `hc` and `hw`, 300 in all, whatever C is. The
    convolutions slide over the channels too, so their order matters.
    Sows the gates: cw (N, C, W, 1), hc (N, H, C, 1), hw (N, H, W, 1).

    Fields:
        kernel_size: k, odd.
        no_spatial: leave s_hw out, and halve the sum of the other two instead.
        dtype: of the gates' arithmetic, if wider than float32.
        norm: what normalises the logits, such as BatchNorm, or None; by default the authors' slow
            one (torch's momentum 0.01).

    Of tied maxima the first takes the gradient, as in the authors' code (torch.max).

    Raises InputError for an even kernel and, in train mode, for a single sample of one position,
    of which BatchNorm would see one value in s_hw.
    """

    kernel_size: int = 7
    no_spatial: bool = False
    norm: Callable[..., nn.Module] | None = partial(BatchNorm, momentum=0.99)

    role = "recalibrate"
    namings = {
        "official": tuple(
            (f"{branch}.conv.{part}", f"{branch}.{part}")
            for branch in ("cw", "hc", "hw")
            for part in ("conv", "bn")
        ),
        # The copy beside the authors' ResNets, whose names their checkpoints have.
        "official_models": (
            ("ChannelGateH.spatial", "cw"),
            ("ChannelGateW.spatial", "hc"),
            ("SpatialGate.spatial", "hw"),
        ),
    }

    official = variant("The authors' TripletAttention; the default.")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        wide = x.astype(at_least_float32(self.dtype or x.dtype))

        def gated(name: str, axes: tuple[int, ...]) -> Array:
            """x gated over the first two of its axes in this order, which undoes itself."""
            gate = SpatialAttention(
                kernel_size=self.kernel_size,
                pools=("max", "avg"),
                dtype=self.dtype,
                **self.initialisers,
                norm=self.norm,
                name=name,
            )
            return gate(wide.transpose(axes), train).transpose(axes)

        total = gated("cw", (0, 3, 2, 1)) + gated("hc", (0, 1, 3, 2))
        if self.no_spatial:
            return (total / 2).astype(x.dtype)
        return ((total + gated("hw", (0, 1, 2, 3))) / 3).astype(x.dtype)
