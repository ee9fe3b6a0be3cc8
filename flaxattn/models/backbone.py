"""What all networks have in common: slots, stages, features, pool, dropout and classifier."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory
from flaxattn.errors import require_least, require_rate, unknown
from flaxattn.layers.conv import Initializer
from flaxattn.layers.fields import require_types
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool, max_pool, mean_of
from flaxattn.models.calls import own_variables, reading
from flaxattn.models.place import place
from flaxattn.models.placement import Placement, Places, Slot

# timm's names: (N, H, W, C) -> (N, C), and twice as many channels for the last.
GLOBAL_POOLS: dict[str, Callable[[Array], Array]] = {
    "avg": average_pool,
    "max": max_pool,
    "avgmax": lambda x: mean_of([average_pool(x), max_pool(x)]),
    "catavgmax": lambda x: jnp.concatenate([average_pool(x), max_pool(x)], axis=-1),
}


def _as_the_input(*arrays: Any, **_: Any) -> list[Any]:
    """A layer's input and parameters in the input's dtype, as its `promote_dtype`."""
    return [array.astype(arrays[0].dtype) for array in arrays]


# The last layer: it computes in its input's dtype, float32 or wider after pooling.
Classifier = functools.partial(nn.Dense, promote_dtype=_as_the_input)


class Backbone(nn.Module, kw_only=True):
    """A convolutional network with attention in it, that ends in a pool and a classifier.

    images (N, H, W, C) -> logits (N, num_classes), or what the classifier would see if num_classes
    is 0, both float32 or wider. `features` returns the last map at each stride.

    Fields:
        num_classes: width of the last layer; 0 leaves it out.
        global_pool: "avg", "max", "avgmax", their mean, or "catavgmax", one after the other.
        dropout: how likely a feature before the last layer is left out in train mode.
        attention: layers in the network, in any form that `place.place` takes.
        dtype: of the convolutions and of the layers in the slots; None for the inputs'.
        param_dtype: of parameters and running statistics, those of the layers in the slots too.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train). Layers in the slots have their own.

    A dtype that the placement of a slot sets itself stays as it is. Random numbers come from the
    "dropout" stream.

    Raises InputError when constructed with an unknown pool, a negative `num_classes`, a rate
    outside [0, 1), or a slot that `place` refuses; and when called, for a layer that changes the
    shape of its map.
    """

    num_classes: int = 1000
    global_pool: str = "avg"
    dropout: float = 0.0
    attention: Slot = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    norm: Callable[..., nn.Module] = BatchNorm

    # What the last layer is called.
    head_name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]] = ("attention",)
    # Fields that may differ from those of the network whose trained weights it has.
    free_fields: ClassVar[frozenset[str]] = frozenset(
        {"attention", "dropout", "dtype", "global_pool", "name", "num_classes", "param_dtype"}
        | {"parent"}
    )

    def __post_init__(self) -> None:
        require_types(self)
        self.require_known("global_pool", GLOBAL_POOLS)
        require_least("num_classes", self.num_classes, 0)
        require_rate("dropout", self.dropout)
        for slot in self.slots:
            value = getattr(self, slot)
            if value is not False or not self.places.gated:
                setattr(self, slot, place(slot, value, self.places))
        super().__post_init__()

    def require_known(self, field: str, known: Collection[str]) -> None:
        """InputError unless the field's value is one of `known`."""
        if getattr(self, field) not in known:
            raise unknown(field, getattr(self, field), known)

    @property
    def places(self) -> Places:
        """Where layers can stand."""
        raise NotImplementedError

    @property
    def sizes(self) -> Sequence[int]:
        """How many blocks each stage has, or convolutions in a network without blocks."""
        return self.places.sizes

    @property
    def last_stage(self) -> list[str]:
        """The names of the modules of the last stage."""
        raise NotImplementedError

    @property
    def dtypes(self) -> dict[str, Any]:
        """What the layers are made with."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def make_norm(self) -> LayerFactory:
        """Makes a normalisation from (name=), to be called with (x, train)."""
        return functools.partial(self.norm, **self.dtypes)

    @property
    def elsewhere(self) -> Mapping[str, str]:
        """By the naming of a file, the network of the same tensors that it is of instead."""
        return {}

    def differs_from(self, other: "Backbone") -> list[str]:
        """The fields in which two networks of the same tensors compute something else.

        What each of them is used for is left out: head, slots, dtypes, rates, initialisers.
        """
        if type(self) is not type(other):
            return ["its class"]
        own = {field.name for field in dataclasses.fields(self)} - self.free_fields
        return sorted(name for name in own if _known(self, name) != _known(other, name))

    def placement(self, slot: str) -> Placement | None:
        """What the caller put into a slot."""
        value = getattr(self, slot)
        return value if isinstance(value, Placement) else None

    def add_classifier(self, kernel_init: Initializer) -> None:
        """Makes, in `setup`, the layers after the pool."""
        self.drop = nn.Dropout(self.dropout)
        if self.num_classes:
            classifier = Classifier(
                self.num_classes, param_dtype=self.param_dtype, kernel_init=kernel_init
            )
            setattr(self, self.head_name, classifier)

    def __call__(self, images: Array, train: bool = False) -> Array:
        pooled = self.pooled(self.features(images, train)[-1], train)
        if not self.num_classes:
            return pooled
        with own_variables(self):
            return getattr(self, self.head_name)(self.drop(pooled, deterministic=not train))

    def pooled(self, x: Array, train: bool) -> Array:
        """What the classifier sees of the last map: (N, H, W, C) -> (N, features)."""
        return GLOBAL_POOLS[self.global_pool](x)

    def features(self, images: Array, train: bool = False) -> list[Array]:
        """The last map at each stride: model.apply(variables, images, method="features").

        `feature_strides` times smaller than the images, and of `feature_channels` channels.
        """
        with reading(self, images):
            return self.level_maps(images, train)

    def level_maps(self, images: Array, train: bool) -> list[Array]:
        """What `features` returns, of images that have been looked at."""
        raise NotImplementedError


def _known(network: Backbone, field: str) -> Any:
    """A field's value; of a norm what it computes in evaluation."""
    value = getattr(network, field)
    if field != "norm":
        return value
    norm = value(parent=None)
    fields = {f.name: getattr(norm, f.name) for f in dataclasses.fields(norm)}
    return type(norm), {k: v for k, v in fields.items() if k in ("epsilon", "num_groups")}
