"""Layers that say what they saw, and where in a network they are."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from flaxattn import Conv
from flaxattn.models.placement import Places

SIZES = (2, 1, 3)
PLACES = Places(SIZES)
X = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)


class Probe(nn.Module):
    """Scales its input by a parameter, and sows what it saw."""

    scale: float = 1.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    role: ClassVar[str] = "recalibrate"

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("intermediates", "seen", x)
        return x * self.param("scale", nn.initializers.constant(self.scale), (), self.param_dtype)


class ProbeConv(nn.Module):
    """A 3x3 convolution that sows what it saw, in train mode only."""

    features: int
    strides: int = 1
    activates: bool = False

    role: ClassVar[str] = "convolution"

    @nn.compact
    def __call__(self, x, train=False):
        if train:
            self.sow("intermediates", "seen", x)
        return Conv(self.features, 3, strides=self.strides, use_bias=False, name="inner")(x)


def blocks_with(model, name):
    """The blocks that have a submodule `name`, as (stage, block)."""
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    return {
        tuple(int(number) for number in block.removeprefix("layer").split("_"))
        for block, children in params.items()
        if name in children
    }


def answer(intermediates, *path):
    for name in path:
        intermediates = intermediates[name]
    (value,) = intermediates["__call__"]
    return value


def check_trains(model):
    """A train step can be traced, with gradients for all parameters, and logits come out."""
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, variables, x):
        logits, _ = model.apply(
            variables | {"params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        assert logits.shape == (2, 1000)
        return logits.sum()

    gradients = jax.eval_shape(jax.grad(loss), variables["params"], variables, x)
    assert jax.tree.structure(gradients) == jax.tree.structure(variables["params"])
