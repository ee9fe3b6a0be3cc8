"""Strict by default: eight CPU devices, warnings are errors, no implicit promotion, no network."""

import gc
import itertools
import os
import socket
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# `make test-all` has a lane that compiles as users do, for the published table.
AS_USERS = "FLAXATTN_TEST_AS_USERS" in os.environ
if not AS_USERS:
    # Here compiling takes longer than running, so XLA is asked for less effort.
    os.environ["XLA_FLAGS"] += (
        " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    if version("jaxlib").startswith("0.10."):
        # Its older code generator compiles in a third of the time; later versions do without.
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Programs that do not say which line each operation comes from are made and written faster.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["FLAX_PROFILE"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["OMP_NUM_THREADS"] = "1"  # of torch: pytest-xdist has a process for each core
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis  # noqa: E402
import jax  # noqa: E402  (it reads its environment now)
import pytest  # noqa: E402

# Compilation makes the first example of a test slow, and CI's cores are shared.
hypothesis.settings.register_profile("flaxattn", deadline=None)
hypothesis.settings.load_profile("flaxattn")

PARITY_REPORT = Path(__file__).parent.parent / "reports" / "parity.md"


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """Nothing but this machine is ever contacted."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            if host not in ("127.0.0.1", "::1", "localhost"):
                raise AssertionError(f"a test tried to reach {host}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder in which TFDS's `digits` is prepared."""
    from flaxattn.data import digits

    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(folder)
    return str(folder)


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory):
    """A VOC folder of a few digit scenes, to be read and not to be changed."""
    from flaxattn.data import scenes

    root = tmp_path_factory.mktemp("scenes") / "VOC2012"
    scenes.write(root, {"train": 12, "val": 6})
    return root


def pytest_collection_modifyitems(items):
    """Runs of whole processes first: they take longest, and must not be one worker's last."""
    items.sort(key=lambda item: item.path.name != "test_processes.py")
    # Two workers would know such a test by two names, and run none.
    named_by_address = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not named_by_address, f"give these tests ids: {named_by_address}"


@pytest.fixture(autouse=True)
def forget_programs(counter=itertools.count(1)):
    """Compiled programs of thousands of tests would take gigabytes and slow the rest down."""
    yield
    if next(counter) % 200 == 0:
        jax.clear_caches()


def pytest_collection_finish():
    """What is imported now stays: the garbage collector need not look through it again."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """The largest error of each mechanism against its PyTorch references, as one table.

    Compiled as users do, it is also left in reports/parity.md.
    """
    largest = defaultdict(float)
    bounds = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "parity":
                mechanism, quantity, error, bound = value
                largest[mechanism, quantity] = max(largest[mechanism, quantity], error)
                bounds[quantity] = bound
    if not largest:
        return
    quantities = sorted(bounds)
    lines = [
        "| mechanism | " + " | ".join(f"{q} (≤ {bounds[q]:g})" for q in quantities) + " |",
        "|---|" + "---|" * len(quantities),
    ]
    for mechanism in sorted({m for m, _ in largest}):
        cells = [
            f"{largest[mechanism, q]:.1e}" if (mechanism, q) in largest else "" for q in quantities
        ]
        lines.append(f"| {mechanism} | " + " | ".join(cells) + " |")
    terminalreporter.section("largest error against PyTorch, relative to the largest value")
    for line in lines:
        terminalreporter.line(line)
    if AS_USERS:
        PARITY_REPORT.parent.mkdir(exist_ok=True)
        PARITY_REPORT.write_text("\n".join(lines) + "\n")
