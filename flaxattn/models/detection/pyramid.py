"""A backbone and the feature pyramid on top of it, with attention at its levels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory
from flaxattn.attention.shared_attention import SharedAttention
from flaxattn.errors import InputError
from flaxattn.layers.resize import resize_bilinear, resize_nearest
from flaxattn.models import create_model
from flaxattn.models.detection.conv_norm import apply, conv_norm
from flaxattn.models.placement import Placement, same_shape
from flaxattn.models.residual_backbone import ResidualBackbone

POSITIONS = ("post", "lateral", "input")


def add_in_turn(maps: Sequence[Array]) -> list[Array]:
    """To each map but the first the sum before it is added, resized (bilinear)."""
    sums: list[Array] = []
    for x in maps:
        sums.append(x + resize_bilinear(sums[-1], x.shape[1:3]) if sums else x)
    return sums


FUSIONS: dict[str, Callable[[list[Array]], list[Array]]] = {
    "bottom_up": add_in_turn,
    "top_down": lambda maps: add_in_turn(maps[::-1])[::-1],
}


class FeaturePyramid(nn.Module):
    """Maps of equal channels, to which the coarse ones bring what they know to the fine ones.

        inner_k  = conv1x1(x_k) + nearest(inner_k+1)        from the coarsest down
        output_k = conv3x3(inner_k)

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv:1612.03144. As
    torchvision's, with one level more: every other position of the coarsest.

    Maps [(N, H_k, W_k, C_k), ...], the finest first, -> one map more, of `features` channels.

    Fields:
        levels: how many maps there are.
        features: channels of the outputs.
        norm: makes the normalisation after each convolution from (name=), to be called with
            (x, train); None for none, and biases.
        attention: layers of the levels, which are the stages of the placement. At position "post"
            they see the outputs, of which the additional level is then made; at "lateral" the 1x1
            convolutions' results; at "input" the backbone's maps. With `share` the levels have one
            layer, which at "input" takes one without weights for each channel.
        fuse: "bottom_up" adds to each attended map the fused one of the next finer level, resized
            (bilinear), "top_down" that of the next coarser one; None for neither.
    """

    levels: int
    features: int = 256
    norm: LayerFactory | None = None
    attention: Placement | None = None
    fuse: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        levels = range(self.levels)
        self.inner_blocks = [conv_norm(self, self.features, 1, init) for _ in levels]
        self.layer_blocks = [conv_norm(self, self.features, 3, init) for _ in levels]
        if self.attention is not None:
            layer = self.attention.with_defaults(dtype=self.dtype, param_dtype=self.param_dtype)
            if self.attention.share:
                self.attention_block = SharedAttention(layer)
            else:
                self.attention_blocks = {
                    str(level): layer() for level in levels if self._covers(level)
                }

    def __call__(self, maps: Sequence[Array], train: bool = False) -> list[Array]:
        maps = self._attended(list(maps), "input", train)
        maps = [apply(b, x, train) for b, x in zip(self.inner_blocks, maps, strict=True)]
        maps = self._attended(maps, "lateral", train)
        for level in reversed(range(self.levels - 1)):
            maps[level] = maps[level] + resize_nearest(maps[level + 1], maps[level].shape[1:3])
        maps = [apply(b, x, train) for b, x in zip(self.layer_blocks, maps, strict=True)]
        maps = self._attended(maps, "post", train)
        return [*maps, maps[-1][:, ::2, ::2]]

    def _covers(self, level: int) -> bool:
        return self.attention is not None and self.attention.covers(level + 1, 0, 1)

    def _attended(self, maps: list[Array], position: str, train: bool) -> list[Array]:
        """The maps after the layers at this position, if they are there."""
        if self.attention is None or self.attention.position != position:
            return maps
        covered = [level for level in range(self.levels) if self._covers(level)]
        if self.attention.share:
            layers: list[Any] = [self.attention_block] * len(covered)
            found = self.attention_block([maps[level] for level in covered], train)
        else:
            layers = [self.attention_blocks[str(level)] for level in covered]
            pairs = zip(layers, covered, strict=True)
            found = [layer(maps[level], train) for layer, level in pairs]
        for level, layer, x in zip(covered, layers, found, strict=True):
            maps[level] = same_shape(layer, maps[level], x)
        return maps if self.fuse is None else FUSIONS[self.fuse](maps)


class PyramidBackbone(nn.Module):
    """The networks whose maps a detector reads: `body` and, on top of it, `fpn`.

    Images (N, H, W, C) -> the maps of the pyramid.

    Fields:
        network: of `body`: the fields of `create_model`, its name first.
        taps: the blocks whose maps the pyramid reads, as in `ResidualBackbone.maps`.
        pyramid: of `fpn`: the fields of `FeaturePyramid` but for its levels.
    """

    network: Mapping[str, Any]
    taps: Sequence[tuple[int, int]]
    pyramid: Mapping[str, Any]

    def setup(self) -> None:
        self.body = create_model(**self.network)
        if not isinstance(self.body, ResidualBackbone):
            raise InputError(
                f"body={self.network['name']!r} has no stages of blocks: use a network that has, "
                f"such as resnet50 or mobilenet_v3_large."
            )
        self.fpn = FeaturePyramid(len(self.taps), **self.pyramid)

    def __call__(self, images: Array, train: bool = False) -> list[Array]:
        return self.fpn(self.body.maps(images, self.taps, train), train)
