"""One attention layer for several maps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Namings, declared
from flaxattn.errors import InputError, shown
from flaxattn.layers.fields import Checked


class SharedAttention(Checked):
    """Applies one layer, with one set of weights, to several maps in turn.

        y_k = layer(x_k)                            for each map k
        y_k, carry_k = layer.step(x_k, carry_k-1)   for a layer that has a `step`, as DenseImplicit

    Maps [(N, H_k, W_k, C), ...], such as the levels of a pyramid, -> a list of as many maps, each
    as the layer returns it. The variables are the layer's own, once and with no name around them,
    and so are the namings of its weights: `weights.load(shared, source, [(N, H_k, W_k, C), ...])`
    loads a file of the layer alone. Gradients sum over the maps, a batch norm's running
    statistics move once for each, and what the layer sows is a tuple with an entry for each.

        SharedAttention(partial(SqueezeExcite, reduction=8)).apply(variables, [p3, p4, p5])

    Fields:
        layer: makes the layer: a class, a classmethod that makes one, or a `functools.partial`.

    Raises InputError for no maps, an array instead of a sequence of them, an instance instead of a
    factory, and maps of unequal channels if the layer has weights for each channel.
    """

    layer: Callable[..., nn.Module]

    @property
    def namings(self) -> Namings:
        """The layer's own."""
        return declared(self.layer(parent=None), "namings")

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool = False) -> list[Array]:
        if isinstance(self.layer, nn.Module):
            name = type(self.layer).__name__
            raise InputError(
                f"layer={name}(...) is a layer already: pass the class, or "
                f"functools.partial({name}, ...)."
            )
        if not isinstance(maps, Sequence) or isinstance(maps, str | bytes) or not maps:
            given = f"an array {jnp.shape(maps)}" if hasattr(maps, "shape") else shown(maps)
            raise InputError(f"{given} given: pass a sequence of one map (N, H, W, C) or more.")
        layer = self.layer()
        nn.share_scope(self, layer)
        outputs: list[Array] = []
        carry = None
        for x in maps:
            try:
                y, carry = apply_next(layer, x, carry, train)
            except errors.ScopeParamShapeError as error:
                if not outputs:
                    raise  # these weights fit no map: they are another layer's
                raise InputError(
                    f"{type(layer).__name__} has weights for maps of {maps[0].shape[-1]} channels, "
                    f"as the first of {maps[0].shape} is, and cannot share them with one of "
                    f"{x.shape}: bring the maps to equal channels, or give each a layer of its own."
                ) from error
            outputs.append(y)
        return outputs


def apply_next(layer: Any, x: Array, carry: Any, train: bool) -> tuple[Array, Any]:
    """What `layer` makes of the next of several maps, and the carry for the one after.

    The carry is None before the first map, and stays None for a layer without a `step`.
    """
    if declared(layer, "step") is None:
        return layer(x, train), None
    return layer.step(x, layer.initial_carry(x) if carry is None else carry, train)
