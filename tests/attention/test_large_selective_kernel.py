import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import LargeSelectiveKernel
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case
from tests.torch_reference import large_kernel

CASES = [Case(("lsk", "lsk.official"), {}, lambda: large_kernel.LSK(32), "official")]

X = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))


def given(**leaves):
    """Initial parameters, with the named kernels and biases replaced by constants."""
    params = LargeSelectiveKernel().init(jax.random.key(1), X)["params"]
    for name, (kernel, bias) in leaves.items():
        params[name] = {
            "kernel": jnp.full_like(params[name]["kernel"], kernel),
            "bias": jnp.full_like(params[name]["bias"], bias),
        }
    return {"params": params}


def test_zero_kernels_leave_the_bias_as_factor():
    variables = given(conv=(0, 3))
    np.testing.assert_array_equal(LargeSelectiveKernel().apply(variables, X), 3 * X)


def test_without_a_squeeze_the_branches_count_equally():
    _, sown = contract.sown(LargeSelectiveKernel(), given(conv_squeeze=(0, 0)), X)
    np.testing.assert_array_equal(sown["attention"][0]["branches"], 0.5)


@pytest.mark.parametrize(("channel", "reach"), [(0, 5), (1, 23)])
def test_each_branch_sees_its_surroundings(channel, reach):
    """With the other branch shut, a position's map depends on 5x5 or 23x23 pixels around it."""
    x = jnp.ones((1, 27, 27, 2))
    bias = jnp.where(jnp.arange(2) == channel, 30.0, -1e9)
    params = LargeSelectiveKernel().init(jax.random.key(1), x)["params"]
    params["conv_squeeze"] = {"kernel": jnp.zeros((7, 7, 2, 2)), "bias": bias}

    def centre(x):
        _, sown = contract.sown(LargeSelectiveKernel(), {"params": params}, x)
        return sown["attention"][0]["map"][0, 13, 13].sum()

    seen = np.asarray(jax.grad(centre)(x)[0]).any(-1)
    inside = abs(np.arange(27) - 13) <= reach // 2
    np.testing.assert_array_equal(seen, np.outer(inside, inside))


def test_parameter_count():
    """(25 + 1) C + (49 + 1) C + 2 (C + 1) C / 2 + 2 * 2 * 49 + 2 + (C / 2 + 1) C for C = 64."""
    x = jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32)
    variables = jax.eval_shape(LargeSelectiveKernel().init, jax.random.key(0), x)
    expected = 26 * 64 + 50 * 64 + 65 * 64 + 198 + 33 * 64
    assert sum(p.size for p in jax.tree.leaves(variables)) == expected


def test_odd_channels():
    with pytest.raises(InputError, match=r"^7 channels have no half .* such as 8\."):
        LargeSelectiveKernel().init(jax.random.key(0), X[..., :7])


def test_bfloat16():
    contract.check_bfloat16(LargeSelectiveKernel(), same_gate=False)
