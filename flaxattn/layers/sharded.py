"""Work on examples that each device does by itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def on_each_device(function: Callable[..., Any], *shared: Any) -> Callable[..., Any]:
    """`function` of arrays whose first axis, as that of its results, is examples.

    Before them it is given `shared`, which every device has whole. Other arrays of the program's it
    must not use.

    Under a mesh with an axis `data`, as in train.py's steps, each device calls it with its own
    examples, and nothing is exchanged. XLA by itself gathers the batch for a sort, and asks all
    devices in each round of a loop whether to go on. Without such a mesh, and under `jax.shard_map`
    already, it is the function itself, given `shared`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get("data") != AxisType.Auto:
        return functools.partial(function, *shared)
    whole, share = PartitionSpec(), PartitionSpec("data")

    def call(*examples: Any) -> Any:
        specs = (*[whole] * len(shared), *[share] * len(examples))
        sharded = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False
        )
        return sharded(*shared, *examples)

    return call
