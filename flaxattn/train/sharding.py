"""Devices: which there are, how they form a mesh, how arrays lie on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxattn.errors import InputError

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
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA's plugin
        said = str(error).partition("\n")[0]
        raise InputError(
            f"a {asked} was asked for and JAX finds none on this machine: install JAX for it "
            f'(pip install "jax[{_EXTRAS.get(asked, asked)}]"), or use --platform=cpu.'
            + (f" JAX says: {said}" if said else "")
        ) from error
    if found == "cpu" and not asked and (kind := accelerator_in(Path("/"))):
        raise InputError(
            f"this machine seems to have a {kind} and JAX cannot use it: install JAX for it (pip "
            f'install "jax[{_EXTRAS.get(kind, kind)}]"), or ask for the CPU with --platform=cpu.'
        )


def accelerator_in(root: Path) -> str | None:
    """The accelerator, "gpu" or "tpu", that Linux shows below `root`, its driver working or not.

    Newer TPUs are VFIO groups, as other passed-through devices are, on a PCI bus with Google's
    devices. The Makefile asks the same.
    """
    if any(root.glob("dev/nvidia[0-9]*")):
        return "gpu"
    vendors = (path.read_text().strip() for path in root.glob("sys/bus/pci/devices/*/vendor"))
    if any(root.glob("dev/accel[0-9]*")) or (
        any(root.glob("dev/vfio/[0-9]*")) and "0x1ae0" in vendors
    ):
        return "tpu"
    return None


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """What the run computes on, in words."""
    kind = f"{devices[0].platform.upper()} ({devices[0].device_kind})"
    processes = jax.process_count()
    return f"{len(devices)} x {kind}" + (f" in {processes} processes" if processes > 1 else "")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over the devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def require_divisible(
    batch_size: int, mesh: Mesh, *, accumulation: int = 1, name: str = "batch_size"
) -> None:
    """InputError unless every device gets the same number of examples in every micro-batch."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        of = f"{mesh.size} devices" + (f" x {accumulation} micro-batches" * (accumulation > 1))
        raise InputError(
            f"{name}={batch_size} is not divisible by the {of}: use a multiple of {parts}, "
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
