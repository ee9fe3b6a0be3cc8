import jax
import numpy as np
import pytest

from flaxattn.errors import InputError
from flaxattn.train import sharding


def test_mesh_takes_all_devices_or_those_given():
    assert sharding.make_mesh().shape == {"data": 8}
    assert sharding.make_mesh(jax.devices()[:2]).shape == {"data": 2}


def test_rows_are_spread_over_the_devices():
    mesh = sharding.make_mesh()
    rows = np.arange(48, dtype=np.float32).reshape(16, 3)
    array = sharding.to_devices(mesh, {"rows": rows})["rows"]
    np.testing.assert_array_equal(array, rows)
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}


def test_batch_not_divisible_by_the_devices():
    mesh = sharding.make_mesh()
    with pytest.raises(InputError, match=r"batch_size=100 is not divisible by the 8 devices.*96"):
        sharding.require_divisible(100, mesh)
    with pytest.raises(InputError, match="8 devices x 3 micro-batches: use a multiple of 24"):
        sharding.require_divisible(64, mesh, accumulation=3)
    sharding.require_divisible(96, mesh, accumulation=3)


def test_devices_are_named():
    assert sharding.describe_devices(jax.devices()) == "8 x CPU (cpu)"


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'tpu'\nmore"), AssertionError()]
)
def test_an_accelerator_that_is_not_there(monkeypatch, error):
    def no_backend():
        raise error

    monkeypatch.setattr(jax, "default_backend", no_backend)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=r"a tpu was asked for and JAX finds none.*jax\[tpu\]"):
        sharding.require_platform("tpu")
    with pytest.raises(InputError, match=r"a gpu was asked for and JAX finds none.*jax\[cuda12\]"):
        sharding.require_platform("gpu")


def test_platform_that_is_none():
    with pytest.raises(InputError, match="platform='cuda' is none: use tpu, gpu or cpu"):
        sharding.require_platform("cuda")


@pytest.fixture
def no_platform_asked_for():
    asked = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", asked)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"dev/nvidia0": ""}, "gpu"),
        ({"dev/accel0": ""}, "tpu"),
        ({"dev/vfio/0": "", "sys/bus/pci/devices/0/vendor": "0x1ae0\n"}, "tpu"),
        ({"dev/vfio/0": "", "sys/bus/pci/devices/0/vendor": "0x8086\n"}, None),
        ({"dev/nvidiactl": "", "sys/bus/pci/devices/0/vendor": "0x1ae0\n"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_accelerators_show_themselves(tmp_path, files, kind):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sharding.accelerator_in(tmp_path) == kind


@pytest.mark.usefixtures("no_platform_asked_for")
@pytest.mark.parametrize(("kind", "extra"), [("gpu", "cuda12"), ("tpu", "tpu")])
def test_no_silent_fallback_to_the_cpu(monkeypatch, kind, extra):
    monkeypatch.setattr(sharding, "accelerator_in", lambda _: kind)
    with pytest.raises(InputError, match=rf'seems to have a {kind} .*"jax\[{extra}\]"'):
        sharding.require_platform(None)
    monkeypatch.setattr(sharding, "accelerator_in", lambda _: None)
    sharding.require_platform(None)
