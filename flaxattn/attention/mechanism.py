"""What a mechanism tells others about itself, and what nearly every one is built with."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.layers import maps
from flaxattn.layers.conv import Conv, Initializer, torch_default
from flaxattn.layers.fields import Checked

Role = Literal["recalibrate", "context", "convolution", "head"]
# A class, a classmethod that makes one of its layers, or a `functools.partial` of either.
LayerFactory = Callable[..., nn.Module]
# (foreign, ours) or (foreign, ours, layout), see `weights.naming`; and such tables by source.
Renames = tuple[tuple[str, ...], ...]
Namings = Mapping[str, Renames]


class Neutral(NamedTuple):
    """How a layer is told to return x / gain for every x.

    Fields:
        zeros: its submodules and parameters, by dotted path, that are all zero then.
        gain: two for each sigmoid in a row, which are 1/2 at zero.
    """

    zeros: tuple[str, ...]
    gain: float = 1.0


class AsConvolution(NamedTuple):
    """How a layer that replaces a convolution is told to compute what a trained one does.

    Fields:
        kernels: its parameters, by dotted path, that each hold the kernel then; with zeros around
            it where they are larger, and once for each index of a leading axis.
        norms: its submodules, by dotted path, that each hold the normalisation after it, if the
            layer ends in one of its own.
        zeros: as in `Neutral`.
        gain: by which the kernel is multiplied.
    """

    kernels: tuple[str, ...]
    norms: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    gain: float = 1.0


class Part(Checked, kw_only=True):
    """A module that hands the dtype and the initialisers of its parameters down.

    Fields, all given by keyword:
        dtype: of its arithmetic; each class says of which part, and what None stands for.
        param_dtype: of its parameters.
        kernel_init: of its kernels, by default torch's for convolutions and linear layers.
        bias_init: of its biases, which start at zero where torch draws them from
            U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    The last two are not about normalisations, and say nothing where no kernel or bias is.
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_default
    bias_init: Initializer = nn.initializers.zeros

    @property
    def initialisers(self) -> dict[str, Any]:
        """Those of its fields that its submodules have too."""
        return {name: getattr(self, name) for name in ("param_dtype", "kernel_init", "bias_init")}

    @nn.nowrap
    def convolution(
        self, features: int, kernel_size: Any = 1, *, dtype: DTypeLike | None, **fields: Any
    ) -> Conv:
        """A `Conv` with its initialisers, over which `fields` prevail."""
        return Conv(features, kernel_size, dtype=dtype, **{**self.initialisers, **fields})


class Mechanism(Part):
    """A layer that says what it is to whoever places, loads, grafts, folds or shares it.

    Class attributes:
        role: where it may stand. "recalibrate" and "context" keep the shape of their map,
            "convolution" replaces one, "head" changes the number of channels.
        variants: the names of its classmethods, each of which makes a reference's form of it.
        timm_pairs: whether timm's blocks that have it keep each of their other convolutions in one
            module with its norm, as conv3.conv and conv3.bn.
        step: of a layer that carries a state from map to map: step(x, carry, train) -> (y, carry),
            beside `initial_carry(x)`.

    What a class does not override holds as it is here. A Linen class of somebody else's needs no
    more than a `role`; `declared` reads either kind.
    """

    role: ClassVar[Role]
    variants: ClassVar[tuple[str, ...]] = ()
    timm_pairs: ClassVar[bool] = False
    step: ClassVar[Callable[..., tuple[Array, Any]] | None] = None

    def __init_subclass__(cls, **options: Any):
        made = [name for name, value in vars(cls).items() if isinstance(value, classmethod)]
        cls.variants = tuple(dict.fromkeys((*cls.variants, *made)))
        super().__init_subclass__(**options)

    @property
    def namings(self) -> Namings:
        """The renames of each source of weights that names its parameters otherwise."""
        return {}

    @property
    def neutral(self) -> Neutral | None:
        """How it becomes the identity, if it can."""
        return None

    @property
    def as_convolution(self) -> AsConvolution | None:
        """How it takes over a trained convolution, if it can."""
        return None

    @property
    def activates(self) -> bool:
        """Whether it ends in a normalisation and an activation of its own."""
        return False

    @property
    def pooled_gate(self) -> Callable[[Array], Array] | None:
        """Its gate (N, C) -> (N, C), if it is x times that of x's averages and nothing else.

        This is the permission to fold the gate into what stands before and after the layer.
        """
        return None

    @nn.nowrap
    def require_maps(self, x: Array, axes: Collection[int] = (4,)) -> None:
        """InputError unless x is (N, H, W, C) of a floating dtype, see `maps.require_maps`."""
        maps.require_maps(x, axes=axes)


_SAYS_NOTHING = Mechanism(parent=None)


def declared(layer: nn.Module | type[nn.Module], name: str) -> Any:
    """What `layer` says under `name`: its own, else `Mechanism`'s default; a role may be None.

    A class can be asked for what `Mechanism` calls class attributes.
    """
    return getattr(layer, name, getattr(_SAYS_NOTHING, name, None))


def layer_of(factory: Any) -> Any:
    """The class behind a `LayerFactory`: a class itself, a classmethod or a partial of either."""
    made = factory.func if isinstance(factory, functools.partial) else factory
    return made.__self__ if inspect.ismethod(made) else made


def required_fields(layer: Any) -> list[str]:
    """The fields of a class that have no default."""
    return [
        field.name
        for field in dataclasses.fields(layer)
        if field.default is field.default_factory is dataclasses.MISSING
    ]


class variant(classmethod):
    """A classmethod that makes the layer with `defaults`; fields of the caller prevail.

    A variant of a variant begins with its defaults: light = variant("...", **timm.defaults, ...).
    """

    def __init__(self, summary: str, **defaults: Any):
        self.defaults = defaults

        def make(cls: type[nn.Module], *args: Any, **fields: Any) -> nn.Module:
            return cls(*args, **{**defaults, **fields})

        make.__doc__ = summary
        super().__init__(make)

    def __set_name__(self, owner: type[nn.Module], name: str) -> None:
        self.__func__.__name__ = name
        self.__func__.__qualname__ = f"{owner.__qualname__}.{name}"
