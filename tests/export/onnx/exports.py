"""Layers as ONNX graphs, which the tests share."""

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxattn import create_attention
from flaxattn.export.onnx import to_onnx
from flaxattn.layers.abstract_variables import abstract_variables

SHAPE = (2, 8, 12, 16)
QUICK: dict[str, dict] = {
    "se": {"reduction": 4},
    "cbam": {},
    "sk": {"features": 16, "groups": 4},
    "eca": {},
    "self_attention": {},
    "coordinate": {"reduction": 4},
}


def images(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def drawn(model, shape):
    """Variables without zeros and ones, so that nothing is without effect."""
    rng = np.random.default_rng(0)
    tree = abstract_variables(model, shape)

    def values(leaf):
        width = 1 / math.sqrt(max(math.prod(leaf.shape[:-1]), 1))
        return jnp.asarray(rng.uniform(0.3, 1, leaf.shape) * width, leaf.dtype)

    return jax.tree.map(values, tree)


@cache
def exported(name, *, layout="NCHW"):
    layer = create_attention(name, **QUICK[name])
    variables = drawn(layer, SHAPE)
    return layer, variables, to_onnx(layer, variables, (None, *SHAPE[1:]), layout=layout)


def operations(graph):
    return [node.op_type for node in graph.graph.node]


class Function(nn.Module):
    """A function of images as a module."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        return self.function(x)


MATRIX = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
