"""StableHLO: for other platforms than this one, and back from its bytes without our code."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxattn import InputError, create_attention
from flaxattn.export import to_stablehlo
from flaxattn.layers.initialise import initialise

LAYER = create_attention("cbam", reduction=4)
SHAPE = (2, 6, 5, 8)
RUN = """
import sys
import jax, numpy as np
exported = jax.export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
np.save(sys.argv[3], exported.call(images))
assert "flaxattn" not in sys.modules
"""


@pytest.fixture(scope="module")
def variables():
    return initialise(LAYER, jax.random.key(0), SHAPE)


def test_another_process_runs_it_without_this_library(variables, tmp_path):
    (tmp_path / "layer.stablehlo").write_bytes(
        to_stablehlo(LAYER, variables, (None, *SHAPE[1:])).serialize()
    )
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    np.save(tmp_path / "images.npy", x)
    files = [str(tmp_path / name) for name in ("layer.stablehlo", "images.npy", "answer.npy")]
    subprocess.run([sys.executable, "-c", RUN, *files], check=True)
    answer = np.load(tmp_path / "answer.npy")
    np.testing.assert_allclose(answer, LAYER.apply(variables, x), rtol=1e-5, atol=1e-6)


def test_it_is_for_all_platforms(variables):
    exported = to_stablehlo(LAYER, variables, SHAPE)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [aval.shape for aval in exported.in_avals] == [SHAPE]
    assert to_stablehlo(LAYER, variables, SHAPE, platforms=["tpu"]).platforms == ("tpu",)


def test_what_is_refused(variables):
    with pytest.raises(InputError, match="unknown platform 'gpu'"):
        to_stablehlo(LAYER, variables, SHAPE, platforms=["gpu"])
    layer = create_attention("dynamic_conv", features=8)
    drawn = initialise(layer, jax.random.key(0), SHAPE)
    with pytest.raises(InputError, match=r"state it, as in input_shape=\(1, 6, 5, 8\)"):
        to_stablehlo(layer, drawn, (None, *SHAPE[1:]))
