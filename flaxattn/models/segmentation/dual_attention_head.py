"""The head of DANet."""

from typing import ClassVar

from flax import linen as nn
from jax import Array

from flaxattn.attention.channel_affinity import ChannelAffinity
from flaxattn.attention.mechanism import Mechanism, Namings
from flaxattn.attention.self_attention import SelfAttention
from flaxattn.models.segmentation.head import Head


class DualAttentionHead(Head):
    """Attention over positions and attention over channels side by side, and the sum of both.

    Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR 2019,
    arXiv:1809.02983. It has nothing of `attention.DualAttention`, which is an article's.

    Parameters: of the positions' branch conv5a_0 kernel (3, 3, C, C / 4), sa, those of
    `SelfAttention`, conv51_0 kernel (3, 3, C / 4, C / 4); of the channels' branch conv5c_0, sc,
    those of `ChannelAffinity`, and conv52_0; their normalisations; conv8_1 kernel
    (1, 1, C / 4, num_classes) and bias, and the same of conv6_1 and conv7_1.

    `scores` returns the scores of each branch too, by "out", "position" and "channel": the authors
    train with a loss for each of the three.

    Fields, beside those of `Head`:
        similar: which channels attend to each other, see `ChannelAffinity`; not as the paper says
            but as the authors' code, and therefore their weights, has it.
        query_chunk: see `SelfAttention`.
        dropout: how likely a channel of an example is left out in train mode, before each
            convolution to scores.
    """

    similar: bool = False
    query_chunk: int | None = None
    dropout: float = 0.1

    score_names: ClassVar[tuple[str, ...]] = ("conv6_1", "conv7_1", "conv8_1")

    @property
    def namings(self) -> Namings:
        return {"danet": ()}

    def __call__(self, x: Array, train: bool = False) -> Array:
        return self.scores(x, train=train)["out"]

    @nn.compact
    def scores(self, *maps: Array, train: bool = False) -> dict[str, Array]:
        """The scores of the sum of the branches, and of each of them."""
        (x,) = maps
        hidden = x.shape[-1] // 4
        made = {"dtype": self.dtype, **self.initialisers}

        def branch(before: str, attention: Mechanism, after: str) -> Array:
            names = (f"{before}_0", f"{before}_1")
            y = attention(self.normed_conv(x, hidden, 3, names=names, train=train), train)
            names = (f"{after}_0", f"{after}_1")
            return self.normed_conv(y, hidden, 3, names=names, train=train)

        def score(y: Array, name: str) -> Array:
            drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2))
            return self.score(drop(y, deterministic=not train), name=name)

        positions = SelfAttention(query_chunk=self.query_chunk, name="sa", **made)
        channels = ChannelAffinity(similar=self.similar, name="sc", **made)
        position = branch("conv5a", positions, "conv51")
        channel = branch("conv5c", channels, "conv52")
        return {
            "out": score(position + channel, "conv8_1"),
            "position": score(position, "conv6_1"),
            "channel": score(channel, "conv7_1"),
        }
