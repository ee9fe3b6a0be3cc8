"""A backbone, attention, and a head that classifies each pixel."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory, Namings, Renames, declared
from flaxattn.errors import require_least, unknown
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.resize import resize_bilinear
from flaxattn.models.place import place
from flaxattn.models.placement import (
    Placement,
    Places,
    Slot,
    in_slot,
    renames_below,
    with_others,
)
from flaxattn.models.placement import namings as placed_namings
from flaxattn.models.segmentation.names import SOURCES

Place = tuple[int, int]


class Segmenter(nn.Module, kw_only=True):
    """A class for each pixel of an image.

        logits = resize(head(attention(backbone(images))))

    images (N, H, W, C) -> logits (N, H, W, num_classes), float32 or wider, of any size that the
    backbone and the head take. They are resized bilinearly from the size of the head's scores.

    With `train` or `aux` it returns a dict of logits of that shape: "out", "aux" if there is an
    auxiliary head, and those of its branches that a head is to be trained by.

    Parameters: backbone, neck (the attention), classifier (the head) and aux_classifier. Random
    numbers come from the "dropout" stream.

    Fields:
        network: makes the backbone, a `ResidualBackbone`, whose classifier is not used, from
            (dtype=, param_dtype=).
        head: makes the head, a `Head`, from (num_classes=, norm=, dtype=, param_dtype=).
        places: after which blocks of the backbone the head's maps are, see
            `ResidualBackbone.maps`; the last is where `attention` stands.
        aux_head: makes the auxiliary head, likewise, or None.
        aux_place: after which block its map is.
        num_classes: with the background, where that is one.
        attention: a layer between backbone and head, in any form that `place.place` takes; those
            inside the backbone are fields of `network`.
        align_corners: see `resize_bilinear`.
        naming: whose names the weights have, a key of `names.SOURCES`.
        dtype: of the arithmetic; None for the images'. The layers that compute scores, and the
            resizing, are float32 or wider.
        param_dtype: of parameters and running statistics.
        norm: makes the normalisations of the heads; the backbone has its own.

    Raises InputError for an attention that `place` refuses, an unknown `naming` and `num_classes`
    below one; when called, for a layer that changes the shape of its map, and for what the head
    refuses.
    """

    network: LayerFactory
    head: LayerFactory
    places: tuple[Place, ...] = ((4, -1),)
    aux_head: LayerFactory | None = None
    aux_place: Place = (3, -1)
    num_classes: int = 21
    attention: Slot = None
    align_corners: bool = False
    naming: str = "torchvision"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    norm: Callable[..., nn.Module] = BatchNorm

    def __post_init__(self) -> None:
        require_least("num_classes", self.num_classes, 1)
        if self.naming not in SOURCES:
            raise unknown("naming", self.naming, SOURCES)
        self.attention = place("attention", self.attention, Places([1], ("out",)))
        super().__post_init__()

    @property
    def dtypes(self) -> dict[str, Any]:
        """What all parts are made with."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def head_fields(self) -> dict[str, Any]:
        """What the heads are made with."""
        return {"num_classes": self.num_classes, "norm": self.norm, **self.dtypes}

    @property
    def heads(self) -> dict[str, Any]:
        """The heads by themselves, by their names."""
        makers = {"classifier": self.head, "aux_classifier": self.aux_head}
        return {
            name: make(**self.head_fields, parent=None)
            for name, make in makers.items()
            if make is not None
        }

    @property
    def head_name(self) -> tuple[str, ...]:
        """The layers whose number of outputs is `num_classes`, for `flaxattn.weights`."""
        return tuple(f"{name}/{s}" for name, head in self.heads.items() for s in head.score_names)

    @property
    def namings(self) -> Namings:
        """The renames of the weights that `naming` says, attention included."""
        theirs = SOURCES[self.naming]
        parts = ("backbone", *self.heads)
        renames: list[tuple[str, ...]] = [(getattr(theirs, part), part) for part in parts]
        renames += theirs.stem
        # torchvision takes a MobileNet's layers out of the Sequential of that name.
        for foreign, *ours in self._renames_of(self.network(parent=None)):
            renames.append((foreign.removeprefix("features."), *ours))
        for name, head in self.heads.items():
            renames += renames_below(name, self._renames_of(head), getattr(theirs, name))
        attention = self.attention if isinstance(self.attention, Placement) else None
        return with_others({self.naming: tuple(renames)}, placed_namings({"neck": attention}))

    def _renames_of(self, part: nn.Module) -> Renames:
        return declared(part, "namings").get(self.naming, ())

    def setup(self) -> None:
        self.backbone: Any = self.network(**self.dtypes)
        if isinstance(self.attention, Placement):
            self.neck = self.attention.with_defaults(**self.dtypes)()
        self.classifier = self.head(**self.head_fields)
        if self.aux_head is not None:
            self.aux_classifier = self.aux_head(**self.head_fields)

    def __call__(
        self, images: Array, train: bool = False, *, aux: bool = False
    ) -> Array | dict[str, Array]:
        *maps, x, before_last = self.backbone.maps(images, [*self.places, self.aux_place], train)
        if isinstance(self.attention, Placement):
            x = in_slot(self.neck, "neck", x, train)
        scores = self.classifier.scores(*maps, x, train=train)
        # Parameters are made whatever the mode; in evaluation the compiler leaves this out.
        if self.aux_head is not None and (train or aux or self.is_initializing()):
            scores["aux"] = self.aux_classifier(before_last, train)
        size, corners = images.shape[1:3], self.align_corners
        if not (train or aux):
            return resize_bilinear(scores["out"], size, align_corners=corners)
        return {name: resize_bilinear(x, size, align_corners=corners) for name, x in scores.items()}
