"""Which values fields and arguments take, by their annotations."""

import collections
import dataclasses
import functools
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from flaxattn.errors import InputError
from flaxattn.images.geometry import horizontal_flip
from flaxattn.layers.fields import Checked, checked, require_fields, require_type, require_types


@pytest.mark.parametrize(
    ("annotation", "legal", "illegal", "words"),
    [
        (int, [3, np.int32(3)], [True, 3.0, "3", None], "an integer"),
        (
            float,
            [3, 2.5, np.float32(3)],
            [True, math.nan, -math.inf, "3", None, jnp.ones(2)],
            "a finite number",
        ),
        (bool, [True, np.True_], [1, "yes", None], "True or False"),
        (str, ["se"], [b"se", None, 3], "a string"),
        (int | None, [3, None], [3.0, ()], "an integer or None"),
        (
            int | Sequence[int],
            [3, (3, 5), [3, 5], ()],
            ["35", b"35", (3, 5.0), (3, None)],
            "an integer or a sequence of integers",
        ),
        (tuple[int, ...], [(), [3]], [3, ("a",)], "a sequence of integers"),
        (tuple[int, str], [(3, "a"), [3, "a"]], [(3,), ("a", 3), 3], "(an integer, a string)"),
        (
            tuple[tuple[int, int], ...],
            [((3, 5),), [[3, 5]]],
            [(3, 5), ((3,),)],
            "a sequence of such as (an integer, an integer)",
        ),
        (Literal[False, "a"], [False, "a"], [0, "b", np.ones(2)], "False or 'a'"),
        (Mapping[str, Any], [{}, ConfigDict()], [[], "a"], "a mapping"),
        (Callable[..., int], [nn.BatchNorm, len], ["relu", None], "a callable"),
        (
            Callable[..., nn.Module],
            [nn.Dense, functools.partial(nn.Dense, 3)],
            ["bn", None, nn.BatchNorm, functools.partial(nn.BatchNorm, momentum=0.9)],
            "a callable that makes a module (not flax.linen.BatchNorm, which has no train)",
        ),
        (type[nn.Module], [nn.Dense], [nn.Dense(3), int, 3], "a subclass of Module"),
        (nn.Module, [nn.Dense(3)], [nn.Dense, 3], "a Module"),
        (
            DTypeLike | None,
            [None, "bfloat16", jnp.float32, np.dtype("float64")],
            ["int8", int, "float61", 3, ("float32", 2), {"names": []}, np.float32(3)],
            "a floating dtype like 'float32' or None",
        ),
        (DTypeLike, [jnp.bfloat16], [None], "a floating dtype like 'float32'"),
        (
            lax.PrecisionLike,
            [None, "highest", lax.Precision.HIGH, (None, "high")],
            ["exact", 0, [3, 5], {}],
            "None, 'default', 'high' or 'highest'",
        ),
        (Any, [3, None], [], ""),
        ("int", ["not resolved"], [], ""),
    ],
    ids=str,
)
def test_kinds(annotation, legal, illegal, words):
    for value in legal:
        require_type("x", value, annotation)
    for value in illegal:
        with pytest.raises(InputError) as error:
            require_type("x", value, annotation)
        assert str(error.value).startswith("x=")
        assert str(error.value).endswith(f" must be {words}.")


class Row(NamedTuple):
    count: int
    name: str | None = None


@dataclasses.dataclass
class Record:
    count: int


class Scale(Checked):
    by: float = 1.0

    def __call__(self, x):
        return self.by * x


@pytest.mark.parametrize("make", [Row, Record])
def test_the_fields_of_a_tuple_and_of_a_dataclass(make):
    require_types(make(3))
    with pytest.raises(InputError, match=rf"^{make.__name__}\.count='3' must be an integer\.$"):
        require_types(make("3"))


def test_a_module_is_only_made_with_what_it_takes():
    assert Scale(2).clone(by=3).apply({}, 1) == 3
    with pytest.raises(InputError, match=r"^Scale\.by='2' must be a finite number\.$"):
        Scale("2")
    with pytest.raises(InputError, match=r"^Scale\.name=3 must be a string or None\.$"):
        Scale(name=3)


def test_a_long_value_is_cut():
    with pytest.raises(InputError) as error:
        Scale("2" * 1000)
    assert len(str(error.value)) < 200


def test_arguments():
    @checked
    def double(count: int, *, unit: str = "m", **rest) -> str:
        return f"{2 * count} {unit}{rest or ''}"

    assert double(2, unit="s") == "4 s"
    assert double(2, to="x") == "4 m{'to': 'x'}"
    for arguments, keywords, sentence in (
        (["2"], {}, "count='2' must be an integer."),
        ([2], {"unit": None}, "unit=None must be a string."),
    ):
        with pytest.raises(InputError) as error:
            double(*arguments, **keywords)
        assert str(error.value) == sentence
    assert pickle.loads(pickle.dumps(horizontal_flip)) is horizontal_flip  # for Grain's workers


def test_the_fields_of_a_config():
    kinds = {"count": int, "name": str}
    require_fields(collections.OrderedDict(count=3, name="a"), kinds)
    for config, sentence in (
        (3, "data=3 must be a mapping."),
        ({"name": "a"}, "the config lacks data.count, which must be an integer."),
        ({"count": 3, "name": 3}, "data.name=3 must be a string."),
    ):
        with pytest.raises(InputError) as error:
            require_fields(config, kinds, "data.")
        assert str(error.value) == sentence
