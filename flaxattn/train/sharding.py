"""Devices: which there are, how they form a mesh, how arrays lie on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxattn.errors import InputError

# Files that Linux shows where an accelerator is plugged in, whether or not its driver works.
_DEVICE_FILES = {"nvidia[0-9]*": "gpu", "accel[0-9]*": "tpu", "vfio/[0-9]*": "tpu"}
_EXTRAS = {"gpu": "cuda12", "cuda": "cuda12"}


def require_platform(platform: str | None) -> None:
    """Fixes the platform JAX runs on, or raises InputError; never falls back silently.

    Args:
        platform: "tpu", "gpu" or "cpu"; None takes the best there is, but not the CPU of a machine
            with an accelerator that JAX cannot use.
    """
    if platform not in (None, "tpu", "gpu", "cpu"):
        raise InputError(f"platform={platform!r} is none: use tpu, gpu or cpu.")
    if platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    asked = platform or jax.config.values["jax_platforms"]
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise InputError(
            f"a {asked} was asked for and JAX finds none on this machine: install JAX for it "
            f"(pip install 'jax[{_EXTRAS.get(asked, asked)}]'), or use "
            f"--platform=cpu. JAX says: {str(error).splitlines()[0]}"
        ) from error
    if found == "cpu" and not asked:
        for pattern, kind in _DEVICE_FILES.items():
            if any(_device_directory().glob(pattern)):
                raise InputError(
                    f"this machine seems to have a {kind} and JAX cannot use it: install JAX for "
                    f"it (pip install 'jax[{_EXTRAS.get(kind, kind)}]'), or ask for the CPU with "
                    f"--platform=cpu."
                )


def _device_directory() -> Path:
    return Path("/dev")


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """What the run computes on, in words."""
    kind = f"{devices[0].platform.upper()} ({devices[0].device_kind})"
    processes = jax.process_count()
    return f"{len(devices)} x {kind}" + (f" in {processes} processes" if processes > 1 else "")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over the devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def require_divisible(batch_size: int, mesh: Mesh, *, accumulation: int = 1) -> None:
    """InputError unless every device gets the same number of examples in every micro-batch."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        of = f"{mesh.size} devices" + (f" x {accumulation} micro-batches" * (accumulation > 1))
        raise InputError(
            f"batch_size={batch_size} is not divisible by the {of}: use a multiple of {parts}, "
            f"such as {max(batch_size // parts, 1) * parts}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, of which `local` holds this process's rows."""
    # The one transfer of the loop, and meant: with several processes JAX counts it as implicit.
    with jax.transfer_guard("allow"):
        return {
            name: jax.make_array_from_process_local_data(by_example(mesh), rows)
            for name, rows in local.items()
        }
