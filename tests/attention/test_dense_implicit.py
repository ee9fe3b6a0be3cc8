import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import weights
from flaxattn.attention import DenseImplicit, SharedAttention
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case
from tests.torch_reference import dense_implicit

CASES = [Case(("dia", "dia.official"), {}, lambda: dense_implicit.DIA(32), "official")]

X = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


@pytest.mark.parametrize("dtype", parity.BOUNDS)
def test_several_maps_are_the_authors_stage(dtype):
    """Answers, and gradients through the carry, of three maps of different sizes."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, *size, 8)) for size in ((7, 5), (4, 3), (1, 2))]
    reference = dense_implicit.DIA(8).to(getattr(torch, dtype))
    parity.randomise(reference, rng)
    inputs = [
        torch.tensor(parity.to_channels_first(x), dtype=getattr(torch, dtype), requires_grad=True)
        for x in maps
    ]
    expected = reference.over(inputs)
    sum(y.sin().sum() for y in expected).backward()
    state = {key: tensor.detach().numpy() for key, tensor in reference.named_parameters()}
    slopes = {key: parameter.grad.numpy() for key, parameter in reference.named_parameters()}

    with jax.enable_x64(dtype == "float64"):
        layer = DenseImplicit(param_dtype=jnp.dtype(dtype))
        variables, expected_slopes = (
            weights.load(layer, tensors, maps[0].shape, "official") for tensors in (state, slopes)
        )
        shared = SharedAttention(functools.partial(DenseImplicit, param_dtype=jnp.dtype(dtype)))

        def loss(variables, maps):
            answers = shared.apply(variables, maps)
            return sum(jnp.sin(y).sum() for y in answers), answers

        run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        gradients, answers = run(variables, [jnp.asarray(x, dtype) for x in maps])
    bound = parity.BOUNDS[dtype]
    for ours, theirs in zip(answers, expected, strict=True):
        theirs = parity.to_channels_last(theirs.detach().numpy())
        assert parity.difference(ours, theirs) <= bound["forward"]
    wanted = (expected_slopes, [parity.to_channels_last(x.grad.numpy()) for x in inputs])
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert parity.difference(ours, theirs) <= bound["gradient"]


def test_a_later_map_depends_on_the_earlier():
    layer = DenseImplicit()
    variables = jax.jit(layer.init)(jax.random.key(1), X)

    def second(first):
        _, carry = layer.apply(variables, first, layer.initial_carry(first), method="step")
        return layer.apply(variables, X, carry, method="step")[0]

    assert abs(second(X) - second(5 * X)).max() > 1e-2
    assert abs(second(X) - layer.apply(variables, X)).max() > 1e-2


def test_zero_kernels_quarter_the_input():
    """sigmoid(0) for the output gate, and for the memory of tanh(0)."""
    layer = DenseImplicit(kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), X), X), 0.25 * X
    )


def test_the_forget_gate_keeps_the_memory():
    """With nothing let in and nothing forgotten, the memory is the one before."""
    layer = DenseImplicit(kernel_init=nn.initializers.zeros)
    params = jax.jit(layer.init)(jax.random.key(1), X)["params"]
    bias = jnp.repeat(jnp.array([-100.0, 100.0, 3.0, 0.0]), 32)  # i, f, g, o
    params["input_fc2"]["bias"] = bias
    carry = (jnp.zeros((2, 32)), jax.random.normal(jax.random.key(2), (2, 32)))
    y, (hidden, memory) = layer.apply({"params": params}, X, carry, method="step")
    np.testing.assert_allclose(memory, carry[1], rtol=1e-6)
    np.testing.assert_allclose(hidden, 0.5 * jax.nn.sigmoid(carry[1]), rtol=1e-6)
    np.testing.assert_allclose(y, X * hidden[:, None, None, :], rtol=1e-6)


def test_gate_is_the_first_step():
    contract.check_gate(DenseImplicit())


def test_parameter_count():
    """2 (C h + h + 4 C h + 4 C), h = C / 4."""
    x = jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32)
    variables = jax.eval_shape(DenseImplicit().init, jax.random.key(0), x)
    count = sum(p.size for p in jax.tree.leaves(variables))
    assert count == 2 * (64 * 16 + 16 + 16 * 256 + 256)


def test_too_few_channels():
    with pytest.raises(InputError, match="reduction=4 leaves no channel of 3"):
        DenseImplicit().init(jax.random.key(0), X[..., :3])


def test_bfloat16():
    contract.check_bfloat16(DenseImplicit(kernel_init=nn.initializers.normal(0.005)))
