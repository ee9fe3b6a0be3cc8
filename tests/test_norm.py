import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import BatchNorm
from flaxattn.errors import InputError
from flaxattn.norm import GroupNorm, LayerNorm
from flaxattn.train.sharding import by_example, make_mesh, replicated


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


def test_a_large_mean_costs_no_digits():
    x = 1e4 + jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    answer, _ = BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    np.testing.assert_allclose(answer.std((0, 1, 2)), 1, rtol=1e-2)


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
    params = layer.init(jax.random.key(0), x)["params"]
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
