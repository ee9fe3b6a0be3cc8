"""Fields hold what their annotations say, or one sentence says which does not."""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from flaxattn.errors import InputError, shown

P = ParamSpec("P")
R = TypeVar("R")


class Checked(nn.Module):
    """A module that is only made with fields of the annotated types, else InputError."""

    def __post_init__(self) -> None:
        require_types(self)
        super().__post_init__()


def require_types(owner: Any) -> None:
    """InputError for a field of a dataclass or named tuple that is not what its annotation says.

    Integers are numbers, lists serve as tuples, NumPy's scalars as Python's. A number must be
    finite and a dtype floating. A string as annotation, or `Any`, says nothing.
    """
    owners: Any = type(owner)
    for name, kind in _kinds(owners).items():
        value = getattr(owner, name)
        if not kind.holds(value):
            raise InputError(f"{type(owner).__name__}.{name}={shown(value)} must be {kind.words}.")


def require_type(name: str, value: Any, annotation: Any) -> None:
    """InputError unless `value`, called `name`, is what such an annotation says."""
    kind = _kind(annotation)
    if not kind.holds(value):
        raise InputError(f"{name}={shown(value)} must be {kind.words}.")


def require_fields(config: Any, kinds: Mapping[str, Any], prefix: str = "") -> None:
    """InputError unless a mapping has each of these fields, of the kind that stands beside it.

    `prefix` stands before the fields' names in an error.
    """
    require_type(prefix.rstrip(".") or "config", config, Mapping)
    for name, annotation in kinds.items():
        if name not in config:
            words = _kind(annotation).words
            raise InputError(f"the config lacks {prefix}{name}, which must be {words}.")
        require_type(prefix + name, config[name], annotation)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises InputError for an argument that is not what is annotated."""
    signature = inspect.signature(function)
    kinds = {name: _kind(one.annotation) for name, one in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if not kinds[name].holds(value):
                raise InputError(f"{name}={shown(value)} must be {kinds[name].words}.")
        return function(*args, **kwargs)

    return call


class _Kind(NamedTuple):
    """Of a field's values: which they are, and how they are called after "must be"."""

    holds: Callable[[Any], bool]
    words: str
    plural: str = ""


@functools.cache
def _kinds(owner: type) -> dict[str, _Kind]:
    """The kind of each field that says anything."""
    if dataclasses.is_dataclass(owner):
        annotations: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(owner)}
        annotations.pop("parent", None)  # Flax's own
    else:
        annotations = dict(owner.__annotations__)
    kinds = {name: _kind(annotation) for name, annotation in annotations.items()}
    return {name: kind for name, kind in kinds.items() if kind is not _ANYTHING}


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    number: Any = value if isinstance(value, Real) else math.nan
    return not isinstance(value, bool) and -math.inf < number < math.inf


def _is_dtype(value: Any) -> bool:
    # NumPy would also take None, and tuples and mappings, which describe records.
    if not isinstance(value, str | type | np.dtype):
        return False
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def _is_precision(value: Any) -> bool:
    if isinstance(value, tuple) and len(value) == 2:
        return all(map(_is_precision, value))
    if not isinstance(value, str):
        return value is None or isinstance(value, lax.Precision)
    try:
        return bool(lax.Precision(value).name)
    except ValueError:
        return False


_ANYTHING = _Kind(lambda _: True, "anything")
_DTYPE = _Kind(_is_dtype, "a floating dtype like 'float32'")
# Flax's own batch norm would take `train` for use_running_average, its opposite.
_MODULE_FACTORY = _Kind(
    lambda value: callable(value) and getattr(value, "func", value) is not nn.BatchNorm,
    "a callable that makes a module (not flax.linen.BatchNorm, which has no train)",
)
_PLAIN: dict[Any, _Kind] = {
    Any: _ANYTHING,
    bool: _Kind(lambda value: isinstance(value, bool | np.bool_), "True or False"),
    int: _Kind(_is_integer, "an integer", "integers"),
    float: _Kind(_is_number, "a finite number", "finite numbers"),
    str: _Kind(lambda value: isinstance(value, str), "a string", "strings"),
    type(None): _Kind(lambda value: value is None, "None"),
    DTypeLike: _DTYPE,
    lax.PrecisionLike: _Kind(_is_precision, "None, 'default', 'high' or 'highest'"),
}


@functools.cache
def _kind(annotation: Any) -> _Kind:
    if annotation is inspect.Parameter.empty:
        return _ANYTHING
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _any_of(inner)
    if origin is Literal:
        return _Kind(
            lambda value: any(type(value) is type(each) and value == each for each in inner),
            " or ".join(map(repr, inner)),
        )
    if origin in (tuple, Sequence):
        return _several(inner)
    if origin is type:
        made = inner[0]
        return _Kind(
            lambda value: isinstance(value, type) and issubclass(value, made),
            f"a subclass of {made.__name__}",
        )
    kind = origin or annotation
    if kind is Callable and inner and inner[-1] is nn.Module:
        return _MODULE_FACTORY
    if kind is Callable:
        return _Kind(callable, "a callable")
    if kind is Mapping:  # ml_collections.ConfigDict is not one
        return _Kind(lambda value: hasattr(value, "keys"), "a mapping")
    if isinstance(kind, type):
        name = kind.__name__
        return _Kind(lambda value: isinstance(value, kind), f"a {name}", f"{name}s")
    return _ANYTHING


def _any_of(annotations: tuple[Any, ...]) -> _Kind:
    """Of a union; one with a dtype in it comes with what a dtype is a union of."""
    rest = annotations
    kinds: list[_Kind] = []
    if set(typing.get_args(DTypeLike)) <= set(annotations):
        kinds.append(_DTYPE)
        rest = tuple(a for a in annotations if a not in typing.get_args(DTypeLike))
    kinds += map(_kind, rest)
    *others, last = [kind.words for kind in kinds]
    words = f"{', '.join(others)} or {last}" if others else last
    plural = " or ".join(kind.plural or kind.words for kind in kinds)
    return _Kind(lambda value: any(kind.holds(value) for kind in kinds), words, plural)


def _several(annotations: tuple[Any, ...]) -> _Kind:
    """Of `Sequence[X]`, `tuple[X, ...]` or `tuple[X, Y]`."""
    kinds = [_kind(annotation) for annotation in annotations if annotation is not ...]
    if len(annotations) > 1 and annotations[-1] is not ...:
        words = f"({', '.join(kind.words for kind in kinds)})"
        return _Kind(
            lambda value: (
                isinstance(value, list | tuple)
                and len(value) == len(kinds)
                and all(kind.holds(each) for kind, each in zip(kinds, value, strict=True))
            ),
            words,
            f"such as {words}",
        )
    (kind,) = kinds
    inner = kind.plural or kind.words
    return _Kind(
        lambda value: (
            isinstance(value, Sequence)
            and not isinstance(value, str | bytes)
            and all(map(kind.holds, value))
        ),
        f"a sequence of {inner}",
        f"sequences of {inner}",
    )
