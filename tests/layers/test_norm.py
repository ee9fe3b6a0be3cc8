import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import BatchNorm, weights
from flaxattn.errors import InputError
from flaxattn.inspect.compiled import collectives
from flaxattn.layers.norm import FrozenBatchNorm, GroupNorm, LayerNorm
from flaxattn.train.sharding import by_example, make_mesh, replicated
from tests.attention import parity
from tests.torch_reference.torchvision_shim import torchvision


@pytest.mark.parametrize("shape", [(4, 5, 7, 3), (2, 1, 1, 3), (8, 3)])
def test_trains_as_torchs(shape):
    """Answer and both running statistics, over three batches; then evaluation."""
    rng = np.random.default_rng(0)
    theirs = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(3)
    variables = BatchNorm().init(jax.random.key(0), jnp.ones(shape))
    for train in (True, True, True, False):
        theirs.train(train)
        x = rng.normal(2, 3, size=shape).astype(np.float32)
        expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())).detach().numpy()
        ours, moved = BatchNorm().apply(variables, x, train=train, mutable=["batch_stats"])
        variables = {**variables, **moved}
        np.testing.assert_allclose(ours, np.moveaxis(expected, 1, -1), rtol=1e-5, atol=1e-5)
        statistics = variables["batch_stats"]
        np.testing.assert_allclose(statistics["mean"], theirs.running_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics["var"], theirs.running_var, rtol=1e-5)


def test_one_value_a_channel_is_refused_in_train_mode():
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.ones((1, 1, 1, 3)))
    with pytest.raises(InputError, match="more than one value per channel"):
        norm.apply(variables, jnp.ones((1, 1, 1, 3)), train=True, mutable=["batch_stats"])
    norm.apply(variables, jnp.ones((1, 1, 1, 3)))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("shape", [(64, 16, 16, 3), (4096, 3)])
def test_a_large_mean_costs_no_digits(shape, devices):
    x = np.asarray(1e4 + np.random.default_rng(0).normal(size=shape), np.float32)
    mesh = make_mesh(jax.devices()[:devices])
    norm = BatchNorm(momentum=0.0)
    variables = jax.jit(norm.init)(jax.random.key(0), x)
    apply = jax.jit(lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"]))
    answer, moved = apply(jax.device_put(x, by_example(mesh)))
    exact = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moved["batch_stats"]["var"], exact.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(np.std(answer, axis=tuple(range(x.ndim - 1))), 1, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_constant_channel_has_no_variance(value, dtype):
    x = jnp.full((8, 5, 5, 3), value, dtype)
    answer, _ = BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    assert np.abs(answer.astype(jnp.float32)).max() <= 1e-2


def plain_batch_norm(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    row = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale.reshape(row) + bias.reshape(row)


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (6, 2)])
def test_first_and_second_derivatives_are_those_of_the_plain_equations(shape):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, scale, bias = rng.normal(3, 2, shape), rng.normal(size=2), rng.normal(size=2)
        weights = rng.normal(size=shape)
        norm = BatchNorm(param_dtype=jnp.float64)
        stats = jax.jit(norm.init)(jax.random.key(0), x)["batch_stats"]

        def ours(x, scale, bias):
            variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
            return norm.apply(variables, x, train=True, mutable=["batch_stats"])[0]

        def bent(function):
            return lambda *of: jnp.sum(jnp.sin(function(*of)) * weights)

        for derivative in (jax.jacrev, jax.jacfwd, jax.hessian):
            found, expected = (
                derivative(bent(function), argnums=(0, 1, 2))(x, scale, bias)
                for function in (ours, plain_batch_norm)
            )
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_statistics_of_groups(dtype):
    """Each group of consecutive examples by itself; running statistics take the average."""
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 2)) * jnp.arange(8.0).reshape(-1, 1, 1, 1)
    x = x.astype(dtype)
    norm = BatchNorm(bn_group=4)
    variables = jax.jit(norm.init)(jax.random.key(0), x)
    answer, moved = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    parts = [
        BatchNorm().apply(variables, p, train=True, mutable=["batch_stats"])
        for p in jnp.split(x, 2)
    ]
    bound = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 1e-2, "atol": 1e-2}
    expected = jnp.concatenate([y for y, _ in parts]).astype(jnp.float32)
    np.testing.assert_allclose(answer.astype(jnp.float32), expected, **bound)
    averages = jax.tree.map(lambda *of: sum(of) / 2, *(stats for _, stats in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, averages)
    with pytest.raises(InputError, match="bn_group=3 does not divide a batch of 8"):
        BatchNorm(bn_group=3).apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("dtype", "group", "most"),
    # A CPU's compiler leaves the four vectors of one reduction apart; a TPU's combines them.
    [(jnp.bfloat16, None, 1), (jnp.float32, None, 4), (jnp.bfloat16, 2, 0), (jnp.float32, 2, 0)],
)
def test_one_collective_and_none_for_the_groups_of_devices(dtype, group, most):
    norm = BatchNorm(bn_group=group)
    mesh = make_mesh()
    x = jnp.ones((16, 4, 4, 3), dtype)
    variables = jax.device_put(jax.jit(norm.init)(jax.random.key(0), x), replicated(mesh))

    def answer(variables, x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    text = jax.jit(answer).lower(variables, jax.device_put(x, by_example(mesh))).compile().as_text()
    assert sum(collectives(text).values()) <= most


def test_statistics_are_float32_under_bfloat16():
    x = jnp.ones((4, 3, 3, 2), jnp.bfloat16)
    answer, variables = BatchNorm().init_with_output(jax.random.key(0), x)
    assert answer.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_sharded_batch_is_normalised_as_a_whole():
    mesh = make_mesh()
    x = jax.random.normal(jax.random.key(0), (16, 3, 3, 2)) * jnp.arange(16.0).reshape(-1, 1, 1, 1)
    variables = BatchNorm().init(jax.random.key(0), x)

    def apply(variables, x):
        return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])

    spread = jax.jit(apply, out_shardings=replicated(mesh))(
        jax.device_put(variables, replicated(mesh)), jax.device_put(x, by_example(mesh))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        spread,
        apply(variables, x),
    )


@pytest.mark.parametrize("layer", [GroupNorm(4), LayerNorm()])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_layer_and_group_norm_are_torchs(layer, param_dtype):
    """Their parameters, in a dtype of their own, stand beside nothing else."""
    x = np.random.default_rng(0).normal(2, 3, size=(2, 5, 3, 8)).astype(np.float32)
    layer = layer.clone(param_dtype=param_dtype)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    assert {key: (p.shape, p.dtype) for key, p in params.items()} == dict.fromkeys(
        ("scale", "bias"), ((8,), param_dtype)
    )
    given = {
        "scale": jnp.arange(8, dtype=param_dtype),
        "bias": jnp.arange(-8, 0).astype(param_dtype),
    }
    ours = layer.apply({"params": given}, x)
    assert ours.dtype == jnp.float32

    affine = torch.arange(8.0), torch.arange(-8.0, 0.0)
    if isinstance(layer, LayerNorm):
        theirs = torch.nn.functional.layer_norm(torch.tensor(x), (8,), *affine)
    else:
        maps = torch.tensor(np.moveaxis(x, -1, 1).copy())
        theirs = torch.nn.functional.group_norm(maps, 4, *affine).movedim(1, -1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_norm_is_torchvisions_and_has_no_parameters():
    rng = np.random.default_rng(0)
    reference = torchvision.ops.FrozenBatchNorm2d(6, eps=0.0).double()
    parity.randomise(reference, rng)
    for vector in (reference.weight, reference.bias):
        vector.copy_(torch.tensor(rng.normal(size=6)))
    x = rng.normal(size=(2, 5, 4, 6))
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    with jax.enable_x64(True):
        norm = FrozenBatchNorm(epsilon=0.0, param_dtype=jnp.float64)
        variables = weights.load(norm, state, x.shape)
        ours = norm.apply(variables, x, train=True)
    assert variables.keys() == {"batch_stats"}
    theirs = reference(torch.tensor(parity.to_channels_first(x)))
    assert parity.difference(ours, parity.to_channels_last(theirs.numpy())) < 1e-14
