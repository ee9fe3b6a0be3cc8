"""A program's equations, one by one, over values that know how they are stored."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from flaxattn.export.channels_first.rules import RULES, bound
from flaxattn.export.channels_first.values import (
    Known,
    Stored,
    Value,
    as_given,
    is_known,
    maps_order,
    natural,
)

CALLS = ("closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "remat2")


def channels_first(program: ClosedJaxpr) -> Callable[..., list[Array]]:
    """`program` as a function of the same arrays, those with four axes as (N, C, H, W).

    So are its answers. Where it has formulations for some platforms, that for all others is taken.
    """

    def run(*arrays: Array) -> list[Array]:
        given = [Stored(x, maps_order(x.ndim)) for x in arrays]
        answers = _run(program.jaxpr, program.consts, given)
        return [answer.stored(maps_order(len(answer.shape))) for answer in answers]

    return run


def _run(jaxpr: Jaxpr, constants: Sequence[Any], given: Sequence[Value]) -> list[Value]:
    values: dict[Any, Value] = dict(zip(jaxpr.invars, given, strict=True))
    values |= {variable: Known(x) for variable, x in zip(jaxpr.constvars, constants, strict=True)}

    def read(atom: Any) -> Value:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return Known(np.asarray(atom.val, aval.dtype))
        return values[atom]

    for equation in jaxpr.eqns:
        answers = _answer(equation, [read(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, answers, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _answer(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    primitive, params = equation.primitive, equation.params
    name = primitive.name
    if name == "platform_index":
        return [Known(np.asarray(params["platforms"].index(None), np.int32))]
    if name == "cond" and isinstance(operands[0], Known):
        branch = params["branches"][int(operands[0].array)]
        return _run(branch.jaxpr, branch.consts, operands[1:])
    if name in CALLS:
        inner: Any = params.get("jaxpr", params.get("call_jaxpr"))
        closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        return _run(closed.jaxpr, closed.consts, operands)
    answers: list[Any] = [variable.aval for variable in equation.outvars]
    sizes = [n for answer in answers for n in answer.shape]
    if all(isinstance(n, int) for n in sizes) and all(map(is_known, operands)):
        with jax.ensure_compile_time_eval():
            arrays = [operand.stored(natural(operand)) for operand in operands]
            return [Known(x) for x in bound(primitive, arrays, params)]
    if rule := RULES.get(name):
        return rule(primitive, operands, params)
    params = {key: _inner_programs(param) for key, param in params.items()}
    arrays = [operand.stored(natural(operand)) for operand in operands]
    return [as_given(x) for x in bound(primitive, arrays, params)]


def _inner_programs(param: Any) -> Any:
    """What a loop does is written for no platform either; its arrays stay as they are."""
    if type(param) is tuple:
        return tuple(map(_inner_programs, param))
    if not isinstance(param, ClosedJaxpr):
        return param

    def run(*arrays: Array) -> list[Array]:
        answers = _run(param.jaxpr, param.consts, [as_given(x) for x in arrays])
        return [answer.stored(natural(answer)) for answer in answers]

    return jax.make_jaxpr(run)(*(variable.aval for variable in param.jaxpr.invars))
