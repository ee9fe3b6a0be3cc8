"""VGG networks with attention after any named convolution."""

import functools
from collections.abc import Callable
from dataclasses import field
from typing import ClassVar

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import LayerFactory, Namings, declared
from flaxattn.attention.shared_attention import apply_next
from flaxattn.errors import InputError, require_least
from flaxattn.layers.conv import Conv, Initializer, kaiming_fan_out
from flaxattn.layers.fields import require_types
from flaxattn.layers.resize import adaptive_average_pool
from flaxattn.models.backbone import GLOBAL_POOLS, Backbone
from flaxattn.models.placement import Places, conv_name, renames_below, same_shape

HEADS = ("fixed", "sliding")
_HEAD_SIZE = 7  # positions along either side of the map that the first fully connected layer sees


class VGG(Backbone):
    """Five stages of 3x3 convolutions with a max pool after each, and three fully connected layers.

    Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
    2015, arXiv:1409.1556; torchvision's and timm's numerically, with the authors' Caffe names:
    conv1_1 to conv5_4, with `batch_norm` bn1_1 to bn5_4, fc6, fc7 and fc8.

    Images have 32 pixels or more along both sides. `features` returns the maps before each max
    pool, and after the last.

    Fields, beside those of `Backbone`:
        stage_sizes: convolutions in each of the five stages.
        batch_norm: a batch normalisation after each convolution, which the paper does not have.
        head: what maps of other than 7x7 positions come to (images of 224 pixels give 7x7).
            "fixed": average bins make them 7x7, as in torchvision. "sliding": the fully connected
            layers are convolutions, and `global_pool` follows them, as in timm; a side below 7 is
            first made 7 by average bins.
        width: channels of the first stage; they double up to eightfold.
        hidden_features: of fc6 and fc7.
        dropout: also between fc6 and fc7.
        attention: after convolutions (after their norm and ReLU, before a pool). `after` names the
            convolutions; `stages` and `blocks` count them from stage 1 and block 0, so that conv5_3
            is block 2 of stage 5. The layer after conv5_3 is called se5_3; with share=True that of
            all in stage 5 is se5.
        kernel_init: of the convolutions; the fully connected layers start as N(0, 0.01^2), with
            zero biases, as in torchvision.

    Article 3 wants its DualAttention after conv5_3, and its code, which splits torchvision's
    Sequential at 28, puts it after the ReLU of conv5_2. As written and as meant:

        create_model("vgg16", attention=dict(name="sca", after="conv5_2"))
        create_model("vgg16", attention=dict(name="sca", after="conv5_3"))

    The naming "articles" is that of a torchvision Sequential into which the layers were inserted:
    there an attention layer counts, and moves the indices of all that follows it.

    Raises InputError also for other than five stages, for unknown heads and widths below one; and
    when called, for smaller images.
    """

    stage_sizes: tuple[int, ...]  # type: ignore[misc]  # `dropout` is by keyword
    batch_norm: bool = False
    head: str = "fixed"
    width: int = 64
    hidden_features: int = 4096
    dropout: float = field(default=0.5, kw_only=True)
    kernel_init: Initializer = kaiming_fan_out

    head_name: ClassVar[str] = "fc8"
    free_fields: ClassVar[frozenset[str]] = Backbone.free_fields | {"kernel_init"}

    def __post_init__(self) -> None:
        require_types(self)
        self.stage_sizes = tuple(self.stage_sizes)
        if len(self.stage_sizes) != 5 or min(self.stage_sizes) < 1:
            raise InputError(
                f"stage_sizes={self.stage_sizes} makes no VGG: use five numbers of convolutions, "
                f"1 or more."
            )
        self.require_known("head", HEADS)
        require_least("width", self.width, 1)
        require_least("hidden_features", self.hidden_features, 1)
        super().__post_init__()

    @property
    def places(self) -> Places:
        names = [conv_name(stage, block) for stage, block in self._positions()]
        return Places(self.stage_sizes, ("out",), names=names)

    @property
    def last_stage(self) -> list[str]:
        blocks = range(self.stage_sizes[-1])
        norms = [f"bn5_{block + 1}" for block in blocks] if self.batch_norm else []
        return [*(conv_name(5, block) for block in blocks), *norms]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map of `features`."""
        channels = tuple(self.width * min(2**stage, 8) for stage in range(5))
        return (*channels, channels[-1])

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the image to one of each map of `features`, along either axis."""
        return 1, 2, 4, 8, 16, 32

    @property
    def namings(self) -> Namings:
        """The renames of torchvision's, timm's and the articles' weights."""
        linear = (
            ("classifier.0", "fc6", "linear"),
            ("classifier.3", "fc7", "linear"),
            ("classifier.6", "fc8"),
        )
        convolutional = (("pre_logits.fc1", "fc6"), ("pre_logits.fc2", "fc7"), ("head.fc", "fc8"))
        return {
            "torchvision": (*self._members("torchvision"), *linear),
            "timm": (*self._members("timm"), *convolutional),
            "articles": (*self._members("articles", attention_counts=True), *linear),
        }

    def setup(self) -> None:
        attention = self.placement("attention")
        for stage, block in self._positions():
            conv = Conv(
                self.feature_channels[stage - 1], 3, kernel_init=self.kernel_init, **self.dtypes
            )
            setattr(self, conv_name(stage, block), conv)
            if self.batch_norm:
                setattr(self, f"bn{stage}_{block + 1}", self.make_norm())
            name = self._attention_name(stage, block)
            if attention is not None and name is not None and name not in self._state.children:
                setattr(self, name, attention.with_defaults(**self.dtypes)())
        init = nn.initializers.normal(0.01)
        fully: LayerFactory = functools.partial(Conv, padding=0, kernel_init=init, **self.dtypes)
        self.fc6 = fully(self.hidden_features, _HEAD_SIZE)
        self.fc7 = fully(self.hidden_features)
        self.add_classifier(init)

    def pooled(self, x: Array, train: bool) -> Array:
        least = _HEAD_SIZE if self.head == "sliding" else None
        size = tuple(_HEAD_SIZE if least is None else max(least, side) for side in x.shape[1:3])
        if size != x.shape[1:3]:
            x = adaptive_average_pool(x, size)
        x = self.drop(jax.nn.relu(self.fc6(x)), deterministic=not train)
        return GLOBAL_POOLS[self.global_pool](jax.nn.relu(self.fc7(x)))

    def level_maps(self, images: Array, train: bool) -> list[Array]:
        if min(images.shape[1:3]) < 32:
            raise InputError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels leave nothing after five "
                f"max pools: use 32 or more along both sides."
            )
        x, maps = images, []
        for stage, size in enumerate(self.stage_sizes, start=1):
            carry = None
            for block in range(size):
                x = getattr(self, conv_name(stage, block))(x)
                if self.batch_norm:
                    x = getattr(self, f"bn{stage}_{block + 1}")(x, train)
                x = jax.nn.relu(x)
                name = self._attention_name(stage, block)
                if name is not None:
                    layer = getattr(self, name)
                    attended, carry = apply_next(layer, x, carry, train)
                    x = same_shape(layer, x, attended)
            maps.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return [*maps, x]

    def _positions(self) -> list[tuple[int, int]]:
        """All convolutions, as (stage from 1, block from 0)."""
        sizes = enumerate(self.stage_sizes, start=1)
        return [(stage, block) for stage, size in sizes for block in range(size)]

    def _attention_name(self, stage: int, block: int) -> str | None:
        """What the attention layer after a convolution is called, if there is one."""
        placement = self.placement("attention")
        if placement is None or not placement.covers(stage, block, self.stage_sizes[stage - 1]):
            return None
        return f"se{stage}" if placement.share else f"se{stage}_{block + 1}"

    def _members(self, source: str, *, attention_counts: bool = False) -> list[tuple[str, ...]]:
        """The renames of torchvision's Sequential of convolutions, norms, ReLUs and pools."""
        renames: list[tuple[str, ...]] = []
        attention = self.placement("attention")
        index = 0
        for stage, block in self._positions():
            renames.append((f"features.{index}", conv_name(stage, block)))
            if self.batch_norm:
                index += 1
                renames.append((f"features.{index}", f"bn{stage}_{block + 1}"))
            index += 2
            name = self._attention_name(stage, block)
            if attention is not None and name is not None:
                foreign = f"features.{index}" if attention_counts else name
                index += attention_counts
                inner = declared(attention.example(), "namings").get(source, ())
                renames += [(foreign, name), *renames_below(name, inner, foreign)]
            if block + 1 == self.stage_sizes[stage - 1]:
                index += 1
        return renames


_SIZES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

VGGS: dict[str, Callable[..., nn.Module]] = {
    name + suffix: functools.partial(VGG, stage_sizes=sizes, batch_norm=bool(suffix))
    for name, sizes in _SIZES.items()
    for suffix in ("", "_bn")
}
