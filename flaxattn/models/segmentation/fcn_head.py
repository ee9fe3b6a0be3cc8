"""The head of fully convolutional networks."""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Namings
from flaxattn.models.segmentation.head import Head


class FCNHead(Head):
    """3x3 convolution, normalisation, activation, dropout, and a 1x1 convolution to the scores.

    Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
    arXiv:1411.4038; in torchvision's form, where it is the auxiliary head of other networks too.

    Parameters: conv kernel (3, 3, C, features), bn, score kernel (1, 1, features, num_classes) and
    bias; with `use_bias` conv bias (features,).

    Fields, beside those of `Head`:
        features: None for C / 4.
        dropout: how likely a number of the map is left out in train mode.
        drop_channels: leave out whole channels of an example instead, as torch's Dropout2d.
        use_bias: of the 3x3 convolution.
        activation: after the normalisation.
    """

    features: int | None = None
    dropout: float = 0.1
    drop_channels: bool = False
    use_bias: bool = False
    activation: Callable[[Array], Array] = jax.nn.relu

    @property
    def namings(self) -> Namings:
        numbers = (("0", "conv"), ("1", "bn"))
        return {
            "torchvision": (*numbers, ("4", "score")),
            "semseg": (*numbers, ("4", "score")),
            "ccnet": (*numbers, ("3", "score")),
            "danet": (("conv5.0", "conv"), ("conv5.1", "bn"), ("conv5.4", "score")),
        }

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        features = x.shape[-1] // 4 if self.features is None else self.features
        x = self.normed_conv(
            x,
            features,
            3,
            names=("conv", "bn"),
            train=train,
            activation=self.activation,
            use_bias=self.use_bias,
        )
        axes = (1, 2) if self.drop_channels else ()
        x = nn.Dropout(self.dropout, broadcast_dims=axes)(x, deterministic=not train)
        return self.score(x, name="score")
