"""What a layer costs: parameters and multiply-adds, counted without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from flaxattn.layers.abstract_variables import abstract_variables


class Cost(NamedTuple):
    """Parameters, and multiply-adds of one forward pass."""

    parameters: int
    macs: int


def cost(layer: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """The cost of `layer` on an input (N, H, W, C), by abstract evaluation: no array is made.

    Multiply-adds are those of XLA's convolutions and matrix products. As is the custom, pooling,
    normalisation, activations and the multiplication with a gate are not counted. The program
    decides, not the equations: a resize or an adaptive pool is a matrix product, so it counts, and
    a depthwise convolution that is written as shifted products does not.
    """
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)
    variables = abstract_variables(layer, input_shape)
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(variables.get("params", {})))
    return Cost(parameters, macs(layer.apply, variables, x))


def macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of convolutions and matrix products in `function(*arguments)`."""
    program = jax.make_jaxpr(function)(*arguments)
    return sum(times * _macs_of(equation) for equation, times in _equations(program.jaxpr))


def _equations(program: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Every equation of a jaxpr and of its inner programs, and how often it is run."""
    for equation in program.eqns:
        yield equation, times
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        parts = equation.params
        if platforms := parts.get("branches_platforms"):  # a CPU's own way is one of them
            parts = parts["branches"][platforms.index(None)]
        for inner in jax.tree.leaves(parts, is_leaf=_is_program):
            if _is_program(inner):
                yield from _equations(getattr(inner, "jaxpr", inner), times * repeats)


def _is_program(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _macs_of(equation: Any) -> int:
    shapes = [operand.aval.shape for operand in equation.invars]
    if equation.primitive.name == "conv_general_dilated":
        features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
        per_value = math.prod(shapes[1]) // features
    elif equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        per_value = math.prod(shapes[0][axis] for axis in contracted)
    else:
        return 0
    return math.prod(equation.outvars[0].aval.shape) * per_value
