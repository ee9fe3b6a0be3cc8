"""Every mechanism as somebody would write it who thinks of nothing but its equations.

`PLAIN[name](params, x)` computes what `flaxattn.create_attention(name)` does with these parameters
in train mode, in jnp and lax alone: maxima by jnp.max, variances by the mean of the squares, norms
without running statistics. benchmarks/tpu.py counts both.
"""

from collections.abc import Callable
from typing import Any

from jax import Array

from benchmarks.plain import channel, context, convolution, spatial

PLAIN: dict[str, Callable[[Any, Array], Array]] = {
    **channel.PLAIN,
    **spatial.PLAIN,
    **convolution.PLAIN,
    **context.PLAIN,
}
