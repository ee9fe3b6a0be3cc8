"""The channel gates that read the averages of a map and nothing else."""

from collections.abc import Callable

from jax import Array

from flaxattn.attention.mechanism import Mechanism
from flaxattn.layers.pooling import average_pool, rescale


class ChannelGate(Mechanism):
    """x times `gate` of its averages, which a backbone may therefore fold into its neighbours."""

    role = "recalibrate"

    def gate(self, pooled: Array) -> Array:
        """The channels' factors from their averages: (N, C) -> (N, C)."""
        raise NotImplementedError

    @property
    def pooled_gate(self) -> Callable[[Array], Array]:
        return self.gate

    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        gate = self.gate(average_pool(x))
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)
