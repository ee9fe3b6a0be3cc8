"""The quick start beside Flax's own: shapes, constants, and distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn import create_attention, initialise
from flaxattn.attention import CondConv
from flaxattn.models import ResNet
from tests.attention.examples import fields

SHAPE = (2, 32, 32, 3)


def small(**slots):
    return ResNet((1, 1), ("basic", "bottleneck"), width=32, num_classes=10, **slots)


def assert_alike(ours, theirs):
    """The same constants; of what is drawn, means and deviations that the number explains."""
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    for path, wanted in theirs.items():
        array = ours[path]
        assert (array.shape, array.dtype) == (wanted.shape, wanted.dtype), path
        array, wanted = (np.asarray(leaf, np.float64) for leaf in (array, wanted))
        if np.ptp(wanted) == 0:
            np.testing.assert_array_equal(array, wanted)
            continue
        assert not np.array_equal(array, wanted)
        error = wanted.std() / array.size**0.5
        assert abs(array.mean() - wanted.mean()) < 6 * error, path
        assert abs(array.std() - wanted.std()) < 6 * error, path
        if array.size > 1000:
            assert np.abs(array).max() == pytest.approx(np.abs(wanted).max(), rel=0.3)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (small(attention="cbam"), SHAPE),
        (small(param_dtype=jnp.bfloat16), SHAPE),
        (create_attention("sca_cnn", **fields("sca_cnn")), (2, 4, 8, 32)),
        (create_attention("window", **fields("window")), (2, 4, 8, 32)),
        (nn.Dense(64, kernel_init=nn.initializers.truncated_normal(0.02)), (2, 4, 8, 32)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_init_in_distribution(model, shape, monkeypatch):
    key = jax.random.key(3)
    theirs = jax.jit(model.init)(key, jnp.zeros(shape, getattr(model, "param_dtype", "float32")))
    monkeypatch.setattr(jax, "jit", None)  # nothing is compiled
    assert_alike(initialise(model, key, shape), theirs)


def test_in_float64():
    with jax.enable_x64(True):
        model = nn.Dense(64, param_dtype=jnp.float64)
        theirs = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32)))
        assert_alike(initialise(model, jax.random.key(0), (1, 32)), theirs)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (CondConv(32), "kernels"),
        (nn.Dense(64, kernel_init=nn.initializers.orthogonal()), "kernel"),
    ],
)
def test_what_numpy_cannot_is_jaxs_own(model, name):
    """One splits its key, and the other asks for a QR decomposition."""
    key, shape = jax.random.key(3), (2, 4, 8, 32)
    ours, theirs = initialise(model, key, shape), jax.jit(model.init)(key, jnp.zeros(shape))
    ours, theirs = ours["params"].pop(name), theirs["params"].pop(name)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_numbers_follow_from_key_and_path_alone():
    ours = initialise(small(), jax.random.key(0), SHAPE)["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        initialise(small(), jax.random.key(0), (1, 64, 48, 3))["params"],
        ours,
    )
    grown = initialise(small(attention="se"), jax.random.key(0), SHAPE)["params"]
    np.testing.assert_array_equal(grown["layer2_0"]["conv3"]["kernel"], kernel(ours))
    other = initialise(small(), jax.random.key(1), SHAPE)["params"]
    assert abs(np.corrcoef(kernel(other).ravel(), kernel(ours).ravel())[0, 1]) < 0.1
    twins = [ours["layer1_0"][name]["kernel"] for name in ("conv1", "conv2")]
    assert abs(np.corrcoef(*(np.ravel(twin) for twin in twins))[0, 1]) < 0.1


def kernel(params):
    return np.asarray(params["layer2_0"]["conv3"]["kernel"])


def test_the_numbers_are_those_of_every_machine():
    params = initialise(nn.Dense(2, kernel_init=uniform), jax.random.key(0), (1, 2))["params"]
    np.testing.assert_allclose(params["kernel"], FIXED, rtol=1e-6)


uniform = nn.initializers.uniform(1.0)
FIXED = [[0.672452, 0.64218485], [0.9258528, 0.8385805]]


def test_only_what_is_asked_for_is_made():
    path = ("params", "fc", "kernel")
    made = flatten_dict(initialise(small(), jax.random.key(0), SHAPE, paths={path}))
    assert {p for p, leaf in made.items() if leaf is not None} == {path}
    whole = initialise(small(), jax.random.key(0), SHAPE)["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(made[path], whole)
