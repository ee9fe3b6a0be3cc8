"""The head of PSANet."""

from collections.abc import Sequence
from typing import ClassVar

from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Namings
from flaxattn.attention.psanet import PSANet
from flaxattn.models.placement import renames_below
from flaxattn.models.segmentation.fcn_head import FCNHead
from flaxattn.models.segmentation.head import Head


class PSAHead(Head):
    """Point-wise spatial attention, whose context stands beside the map, and an `FCNHead` of both.

    Zhao, Zhang, Liu, Shi, Loy, Lin, Jia, "PSANet: Point-wise Spatial Attention Network for Scene
    Parsing", ECCV 2018; as in its first author's semseg.

    Parameters: psa, those of `PSANet`; cls, those of `FCNHead`.

    Fields, beside those of `Head`:
        hidden, direction, compact, mask_size, shrink_factor, query_chunk: of the `PSANet`. With the
            usual mask_size=None the parameters are for maps of one size.
        features: of the `FCNHead`.
        dropout: how likely a channel of an example is left out in train mode.

    Raises InputError for what `PSANet` refuses, such as, with the usual shrink_factor of 2, maps
    with an even number of rows or columns. At an output stride of 8 images of 16 n + 1 pixels have
    odd ones, as the authors' 465.
    """

    hidden: int = 512
    direction: str = "both"
    compact: bool = False
    mask_size: Sequence[int] | None = None
    shrink_factor: int = 2
    query_chunk: int | None = None
    features: int = 512
    dropout: float = 0.1

    score_names: ClassVar[tuple[str, ...]] = ("cls/score",)

    @property
    def namings(self) -> Namings:
        inner = FCNHead(num_classes=self.num_classes, parent=None).namings["semseg"]
        return {"semseg": renames_below("cls", inner)}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        made = {"dtype": self.dtype, "norm": self.norm, **self.initialisers}
        x = PSANet(
            x.shape[-1],
            hidden=self.hidden,
            direction=self.direction,
            compact=self.compact,
            mask_size=self.mask_size,
            shrink_factor=self.shrink_factor,
            query_chunk=self.query_chunk,
            name="psa",
            **made,
        )(x, train)
        head = FCNHead(
            num_classes=self.num_classes,
            features=self.features,
            dropout=self.dropout,
            drop_channels=True,
            name="cls",
            **made,
        )
        return head(x, train)
