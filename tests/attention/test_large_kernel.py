"""Large kernels, whole and separable."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import LargeKernel, LargeSeparableKernel
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import large_kernel

# From the authors' models/van.py: sizes of both kernels, and the dilation.
KERNELS = {
    7: (3, 3, 2),
    11: (3, 5, 2),
    23: (5, 7, 3),
    35: (5, 11, 3),
    41: (5, 13, 3),
    53: (5, 17, 3),
}


def separable(kernel_size):
    return lambda: large_kernel.LSKA(32, *KERNELS[kernel_size])


CASES = [
    Case(("lka",), {}, lambda: large_kernel.LKA(32), "official"),
    Case(
        ("lka.official",), {}, lambda: large_kernel.LKA(32), "official", on=Inputs(maps=((13, 7),))
    ),
    Case(("lska",), {}, separable(23), "official"),
    Case(
        ("lska.official",), {"kernel_size": 7}, separable(7), "official", on=Inputs(maps=((13, 7),))
    ),
    Case(
        ("lska, k = 53",),
        {"kernel_size": 53},
        separable(53),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]


def by_class(value):
    return str(value) if isinstance(value, int) else type(value).__name__


X = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))


@pytest.mark.parametrize("layer", [LargeKernel(), LargeSeparableKernel()], ids=by_class)
def test_a_zero_last_kernel_leaves_the_bias_as_factor(layer):
    variables = jax.jit(layer.init)(jax.random.key(1), X)
    variables["params"]["conv1"] = {"kernel": jnp.zeros((1, 1, 8, 8)), "bias": jnp.full(8, 3.0)}
    np.testing.assert_array_equal(layer.apply(variables, X), 3 * X)


@pytest.mark.parametrize(
    ("layer", "reach"),
    [(LargeKernel(), 23), *((LargeSeparableKernel(kernel_size=k), k) for k in (11, 35, 41))],
    ids=by_class,
)
def test_a_position_sees_exactly_its_kernel(layer, reach):
    side = reach + 4
    x = jnp.ones((1, side, side, 1))
    variables = jax.tree.map(jnp.ones_like, jax.jit(layer.init)(jax.random.key(1), x))

    def centre(x):
        _, sown = contract.sown(layer, variables, x)
        return sown["attention"][0][0, side // 2, side // 2, 0]

    seen = np.asarray(jax.grad(centre)(x)[0, :, :, 0]) != 0
    inside = abs(np.arange(side) - side // 2) <= reach // 2
    np.testing.assert_array_equal(seen, np.outer(inside, inside))


def test_the_separable_one_is_the_whole_one_for_kernels_of_rank_one():
    whole, split = LargeKernel(), LargeSeparableKernel()
    params = jax.jit(split.init)(jax.random.key(1), X)["params"]
    outer = {"conv1": params["conv1"]}
    for name, rows, columns in (
        ("conv0", "conv0h", "conv0v"),
        ("conv_spatial", "conv_spatial_h", "conv_spatial_v"),
    ):
        kernel = params[columns]["kernel"] * params[rows]["kernel"]
        outer[name] = {"kernel": kernel, "bias": params[columns]["bias"]}
    np.testing.assert_allclose(
        whole.apply({"params": outer}, X), split.apply({"params": params}, X), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("layer", [LargeKernel, LargeSeparableKernel])
def test_the_authors_kernels(layer):
    """N(0, 2 / k^2) for a depthwise kernel of k^2 weights, N(0, 2 / C) for the 1x1."""
    x = jnp.zeros((1, 4, 4, 512))
    params = jax.jit(layer.official().init)(jax.random.key(1), x)["params"]
    for name, child in params.items():
        size, columns, fan_in, _ = child["kernel"].shape
        expected = (2 / (size * columns * fan_in)) ** 0.5
        np.testing.assert_allclose(child["kernel"].std(), expected, rtol=0.06, err_msg=name)


@pytest.mark.parametrize("kernel_size", [-7, 0, 9, 21])
def test_kernel_sizes_that_there_are_not(kernel_size):
    sentence = rf"kernel_size={kernel_size} is none .* use 7, 11, 23, 35, 41 or 53\."
    with pytest.raises(InputError, match=sentence):
        LargeSeparableKernel(kernel_size=kernel_size).init(jax.random.key(0), X)


@pytest.mark.parametrize("layer", [LargeKernel(), LargeSeparableKernel()], ids=by_class)
def test_bfloat16(layer):
    contract.check_bfloat16(layer, same_gate=False)


def test_parameter_counts():
    """Per channel n^2 + m^2 weights and 2 biases whole, 2 (n + m) and 4 in rows and columns."""
    for layer, per_channel in itertools.chain(
        [(LargeKernel(), 25 + 49 + 2)],
        (
            (LargeSeparableKernel(kernel_size=k), 2 * (near + far) + 4)
            for k, (near, far, _) in KERNELS.items()
        ),
    ):
        x = jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        count = sum(p.size for p in jax.tree.leaves(variables))
        assert count == per_channel * 64 + 65 * 64
