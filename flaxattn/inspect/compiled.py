"""What a program costs on a TPU, by the TPU's own compiler, with no TPU at hand."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.stages import Compiled

from flaxattn.errors import InputError

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Counts(NamedTuple):
    """The compiler's own figures of one program, for one chip.

    Fields:
        bytes: read from and written to the chip's memory.
        flops: floating-point operations.
        temporaries: bytes of the buffers between arguments and results, at their fullest.
        collectives: how many there are of each kind, in `COLLECTIVES`.
        seconds: spent compiling.
    """

    bytes: int
    flops: int
    temporaries: int
    collectives: dict[str, int]
    seconds: float


def tpu_devices(topology: str = "v5e:2x2") -> list[jax.Device]:
    """The chips of a TPU slice that need not be at hand; a mesh of them is what `count` takes.

    Raises InputError where libtpu is missing, and for topologies it does not know.
    """
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f'no TPU compiler for {topology!r}: install libtpu (pip install "flaxattn[tpu-check]") '
            f"and use a topology that it knows, such as 'v5e:2x2' or 'v4:2x2x1'. It says: "
            f"{str(error).splitlines()[0]}"
        ) from error


def count(function: Callable[..., Any], *arguments: Any, **options: Any) -> Counts:
    """Compiles `function` for a TPU and counts.

    Args:
        function: what is to run, as for `jax.jit`.
        *arguments: `jax.ShapeDtypeStruct`s, with shardings over `tpu_devices`.
        **options: of `jax.jit`, such as donate_argnums.
    """
    traced = jax.jit(function, **options).trace(*arguments)
    lowered = traced.lower(lowering_platforms=("tpu",))
    start = time.perf_counter()
    compiled = lowered.compile()
    return counts(compiled, time.perf_counter() - start)


def counts(compiled: Compiled, seconds: float) -> Counts:
    """The figures of a compiled program."""
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return Counts(
        bytes=round(cost["bytes accessed"]),
        flops=round(cost["flops"]),
        temporaries=memory.temp_size_in_bytes,
        collectives=collectives(compiled.as_text() or ""),
        seconds=seconds,
    )


def collectives(program: str) -> dict[str, int]:
    """How many collectives of each kind the text of a compiled program has."""
    # An asynchronous one is a -start and a -done.
    found = Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program))
    return {kind: found[kind] for kind in COLLECTIVES if found[kind]}
