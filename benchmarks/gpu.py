"""What a GPU is asked to do, with no GPU at hand: python -m benchmarks.gpu

The programs as they are handed to XLA for CUDA, before its own passes, of each mechanism beside its
plain writing (`benchmarks.plain`): multiply-adds twice, bytes of all operations as if none were
fused, and the operations that a GPU runs badly. Compiling, fusing and timing need the GPU.
"""

import argparse
import re
from collections import Counter
from typing import Any

import jax

from benchmarks.plain import PLAIN
from benchmarks.tpu import SIZES, layer_program, layer_rows

SLOW = ("gather", "scatter", "sort", "while")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of mechanisms")
    parser.add_argument("--size", nargs="+", default=SIZES[1:], help="maps, as NxHxWxC")
    options = parser.parse_args()
    print(f"| layer, map | FLOP, ours / plain | bytes, ours / plain | {', '.join(SLOW)} | plain |")
    print("|---|---|---|---|---|")
    for row in layer_rows(options.only, options.size):
        (cost, slow), (plain, plainly) = look(row), look(row, plain=True)
        ratios = [f"{cost[k] / max(plain[k], 1):.2f}" for k in ("flops", "bytes accessed")]
        print(f"| {' | '.join([row.replace(',', ', '), *ratios, slow, plainly])} |", flush=True)


def look(row: str, *, plain: bool = False) -> tuple[Any, str]:
    """XLA's cost analysis of the program, and how many of the `SLOW` operations it has."""
    if plain and row.split(",")[0] not in PLAIN:
        raise SystemExit(f"{row} has no plain writing.")
    function, arguments = layer_program(row, plain=plain)
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    found = Counter(re.findall(r"stablehlo\.(\w+)", lowered.as_text()))
    return lowered.cost_analysis(), ", ".join(str(found[operation]) for operation in SLOW)


if __name__ == "__main__":
    main()
