"""A layer that is the identity at first, for networks that are trained already."""

import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Neutral, Role, declared
from flaxattn.layers.precision import at_least_float32


class Graft(Mechanism):
    """A layer that starts as the identity and lets gradients in from the first step.

        y = gain * layer(x)               if the layer says how it is `neutral`
        y = x + mix * (layer(x) - x)      otherwise, with a number `mix` that starts at zero

    (N, H, W, C) -> the same shape and dtype. The parameters are the layer's own, under the same
    names, and `mix` (). In the first form the last layer before each gate starts at zero, and its
    gradient does not vanish; in the second `mix` moves first, and all else from the second step on.

    With the first form a pretrained network with SE after every block computes 2 sigmoid(0) x = x,
    bit for bit. Freshly drawn, a gate would halve every residual branch.
    """

    layer: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.layer)
        if self.neutral is None:
            dtype = getattr(self.layer, "param_dtype", jnp.float32)
            self.mix = self.param("mix", nn.initializers.zeros, (), dtype)

    @property
    def role(self) -> Role:  # type: ignore[override]
        return self.layer.role

    @property
    def neutral(self) -> Neutral | None:
        return declared(self.layer, "neutral")

    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.layer(x, train)
        if self.is_initializing():
            self._start_at_zero()
        wide = at_least_float32(x.dtype)
        if self.neutral is not None:
            return (self.neutral.gain * y.astype(wide)).astype(x.dtype)
        moved = self.mix.astype(wide) * (y.astype(wide) - x.astype(wide))
        return (x.astype(wide) + moved).astype(x.dtype)

    def _start_at_zero(self) -> None:
        for path in self.neutral.zeros if self.neutral is not None else ():
            top = path.partition(".")[0]
            params = flatten_dict({top: self.get_variable("params", top)}, sep=".")
            for name, array in params.items():
                if f"{name}.".startswith(f"{path}."):
                    params[name] = jnp.zeros_like(array)
            self.put_variable("params", top, unflatten_dict(params, sep=".")[top])
