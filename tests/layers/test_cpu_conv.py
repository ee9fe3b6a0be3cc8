import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from flaxattn.layers import cpu_conv
from flaxattn.layers.conv import convolve
from flaxattn.layers.cpu_conv import Geometry, native

# (x without its batch, kernel, geometry): each formulation, with one to three axes.
CASES = {
    "pointwise": ((5, 7, 6), (1, 1, 6, 4), Geometry((1, 1), (0, 0), (1, 1))),
    "pointwise, strides": ((5, 8, 6), (1, 1, 6, 4), Geometry((2, 3), (0, 0), (1, 1))),
    "pointwise, one axis": ((9, 6), (1, 6, 4), Geometry((2,), (0,), (1,))),
    "depthwise": ((5, 7, 6), (3, 3, 1, 6), Geometry((1, 1), (1, 1), (1, 1), 6)),
    "depthwise, oblong": ((5, 7, 6), (5, 1, 1, 6), Geometry((1, 1), (2, 0), (1, 1), 6)),
    "depthwise, strides": ((6, 7, 6), (5, 3, 1, 6), Geometry((2, 3), (2, 1), (1, 1), 6)),
    "depthwise, dilation": ((9, 7, 6), (3, 3, 1, 6), Geometry((2, 1), (2, 1), (2, 1), 6)),
    "depthwise, one axis": ((9, 6), (3, 1, 6), Geometry((1,), (1,), (1,), 6)),
    "depthwise, three axes": (
        (3, 4, 5, 6),
        (3, 1, 3, 1, 6),
        Geometry((1, 2, 1), (1, 0, 1), (1,) * 3, 6),
    ),
    "depthwise, 1x1": ((3, 4, 6), (1, 1, 1, 6), Geometry((1, 1), (0, 0), (1, 1), 6)),
    "grouped": ((5, 7, 12), (3, 3, 3, 8), Geometry((1, 1), (1, 1), (1, 1), 4)),
    "grouped, in two blocks": ((5, 6, 64), (3, 3, 2, 96), Geometry((2, 2), (1, 1), (1, 1), 32)),
    "grouped, wide groups": ((4, 4, 80), (3, 1, 40, 2), Geometry((1, 2), (2, 0), (2, 1), 2)),
    "grouped, multiplier": ((4, 4, 6), (3, 3, 1, 12), Geometry((1, 1), (1, 1), (1, 1), 6)),
    "grouped, 1x1": ((4, 4, 6), (1, 1, 2, 9), Geometry((1, 1), (0, 0), (1, 1), 3)),
}


def drawn(case, dtype, batch=2):
    shape, kernel_shape, geometry = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *shape)).astype(dtype)
    return x, rng.normal(size=kernel_shape).astype(dtype), geometry


@pytest.mark.parametrize("case", CASES)
def test_is_xlas_own(case):
    """Values and gradients in float64; a first and a second derivative by finite differences."""
    with jax.enable_x64(True):
        x, kernel, geometry = drawn(case, np.float64)
        faster = cpu_conv.formulation(x, kernel, geometry)
        assert faster is getattr(cpu_conv, case.partition(",")[0])

        @functools.partial(jax.jit, static_argnums=0)
        def run(convolution, x, kernel):
            y, pullback = jax.vjp(lambda *a: convolution(*a, geometry, None), x, kernel)
            return y, *pullback(jnp.cos(y))

        for ours, expected in zip(run(faster, x, kernel), run(native, x, kernel), strict=True):
            assert ours.shape == expected.shape
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)
        check_grads(jax.jit(lambda *a: jnp.sin(faster(*a, geometry, None))), (x, kernel), order=1)


def test_a_depthwise_kernel_as_large_as_a_map_is_left_to_xla():
    x, kernel = jnp.zeros((1, 14, 14, 3)), jnp.zeros((14, 14, 1, 3))
    assert cpu_conv.formulation(x, kernel, Geometry((1, 1), (0, 0), (1, 1), 3)) is None


def test_second_derivatives_and_batches_of_kernels():
    with jax.enable_x64(True):
        x, kernel, geometry = drawn("depthwise, strides", np.float64)

        @jax.jit
        def energy(kernel, x):
            return jnp.sum(jnp.sin(cpu_conv.depthwise(x, kernel, geometry, None)))

        check_grads(energy, (kernel, x), order=2)
        kernels = jnp.stack([jnp.asarray(kernel), 2.0 * kernel])
        both = jax.vmap(jax.grad(energy), (0, None))(kernels, x)
        np.testing.assert_allclose(both[1], jax.grad(energy)(kernels[1], x), rtol=1e-12)


@pytest.mark.parametrize("case", ["pointwise", "depthwise", "grouped"])
def test_bfloat16_sums_in_float32(case):
    x, kernel, geometry = drawn(case, jnp.bfloat16)
    ours = convolve(x, kernel, geometry)
    assert ours.dtype == jnp.bfloat16
    exact = native(x.astype(np.float32), kernel.astype(np.float32), geometry, None)
    np.testing.assert_allclose(ours.astype(np.float32), exact, rtol=2**-8, atol=2**-9)


@pytest.mark.parametrize("case", ["pointwise", "depthwise", "grouped"])
def test_other_platforms_have_xlas_own(case):
    x, kernel, geometry = drawn(case, np.float32)
    traced = jax.jit(lambda x, kernel: convolve(x, kernel, geometry)).trace(x, kernel)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 1
        assert f"feature_group_count = {geometry.groups}" in text


@pytest.mark.parametrize("case", ["depthwise", "grouped"])
def test_samples_on_eight_devices(case):
    """The same values and gradients, and the devices meet only for the kernel's gradient."""
    x, kernel, geometry = drawn(case, np.float32, batch=8)

    @jax.jit
    def run(x, kernel):
        y, pullback = jax.vjp(lambda *a: convolve(*a, geometry), x, kernel)
        return y, *pullback(jnp.cos(y))

    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    shared = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    for ours, expected in zip(run(shared, kernel), run(x, kernel), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    text = run.lower(shared, kernel).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text
