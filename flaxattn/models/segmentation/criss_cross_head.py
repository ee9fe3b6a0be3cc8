"""The head of CCNet."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.criss_cross import CrissCross
from flaxattn.attention.mechanism import Namings
from flaxattn.models.placement import renames_below
from flaxattn.models.segmentation.fcn_head import FCNHead
from flaxattn.models.segmentation.head import Head


class CrissCrossHead(Head):
    """Criss-cross attention on a narrowed map, beside the map itself, and an `FCNHead` of both.

    Huang, Wang, Huang, Huang, Wei, Liu, "CCNet: Criss-Cross Attention for Semantic Segmentation",
    ICCV 2019, arXiv:1811.11721.

    Parameters: conva_0 kernel (3, 3, C, C / 4) and convb_0 kernel (3, 3, C / 4, C / 4), their
    normalisations conva_1 and convb_1; cca, those of `CrissCross`; bottleneck, those of `FCNHead`.

    Fields, beside those of `Head`:
        recurrence: passes of the attention, with shared weights.
        features: of the `FCNHead`.
        dropout: how likely a channel of an example is left out in train mode.
        activation: after each normalisation; the authors' InPlaceABN has a leaky ReLU.

    Deviations: the authors' InPlaceABN takes the absolute value of its scale, and adds epsilon.
    """

    recurrence: int = 2
    features: int = 512
    dropout: float = 0.1
    activation: Callable[[Array], Array] = partial(jax.nn.leaky_relu, negative_slope=0.01)

    score_names: ClassVar[tuple[str, ...]] = ("bottleneck/score",)

    @property
    def namings(self) -> Namings:
        inner = FCNHead(num_classes=self.num_classes, parent=None).namings["ccnet"]
        return {"ccnet": renames_below("bottleneck", inner)}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        hidden = x.shape[-1] // 4
        layer = partial(self.normed_conv, train=train, activation=self.activation)
        y = layer(x, hidden, 3, names=("conva_0", "conva_1"))
        attention = CrissCross(
            recurrence=self.recurrence, dtype=self.dtype, name="cca", **self.initialisers
        )
        y = layer(attention(y, train), hidden, 3, names=("convb_0", "convb_1"))
        head = FCNHead(
            num_classes=self.num_classes,
            features=self.features,
            dropout=self.dropout,
            drop_channels=True,
            activation=self.activation,
            dtype=self.dtype,
            norm=self.norm,
            name="bottleneck",
            **self.initialisers,
        )
        return head(jnp.concatenate([x, y], axis=-1), train)
