"""What every layer keeps whatever it computes: its weights' way back, and precision in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import weights
from flaxattn.weights.naming import is_derived, table


def check_round_trip(layer, reference, naming, shape):
    """torch's state dict -> variables -> the same state dict, bit for bit, but for what follows.

    By the naming and, where that is one that the layer knows, by the one that loading finds.
    """
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    loaded = [(naming, weights.load(layer, state, shape, naming))]
    if naming is None or isinstance(naming, str):
        found = weights.load_pretrained(layer, state, shape)
        loaded.append((found.naming, found.variables))
    for name, given in loaded:
        back = weights.to_torch(given, name, module=layer)
        renames = table(name, layer)
        assert back.keys() == {
            key
            for key in state
            if not key.endswith("num_batches_tracked") and not is_derived(key, renames)
        }
        for key, array in back.items():
            np.testing.assert_array_equal(array, state[key], strict=True)


def sown(layer, variables, x):
    """The answer, and what the layer left to look at."""
    answer, state = layer.apply(variables, x, mutable=["intermediates"])
    return answer, state["intermediates"]


def check_gate(layer):
    """`gate` of the averages is what is sown, and the answer is x times it."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    gate = layer.apply(variables, x.mean((1, 2)), method="gate")
    assert gate.shape == (2, 32)
    y, gates = sown(layer, variables, x)
    np.testing.assert_allclose(y, x * gate[:, None, None, :], rtol=1e-6)
    np.testing.assert_allclose(gates["attention"][0], gate, rtol=1e-6)


def check_bfloat16(layer, *, same_gate=True, change=lambda variables: variables):
    """A bfloat16 map far from zero: bfloat16 answer, float32 gates.

    With `same_gate`, for layers whose gate reads x through sums alone, the gates are also those of
    the same numbers in float32; pooling in bfloat16 would be off by 0.2 in 100. A name limits that
    to the leaves that have it in their path. `change` makes other variables of the initial ones, so
    that the numbers to be pooled, or the gates, are not rounded away.
    """
    noise = jax.random.normal(jax.random.key(0), (2, 9, 7, 32))
    x = (100 + noise).astype(jnp.bfloat16)
    variables = change(jax.jit(layer.init)(jax.random.key(1), x))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    answer, gates = sown(layer, variables, x)
    assert answer.dtype == jnp.bfloat16
    assert jax.tree.leaves(gates)
    assert all(gate.dtype == jnp.float32 for gate in jax.tree.leaves(gates))
    if not same_gate:
        return
    _, wide_gates = sown(layer, variables, x.astype(jnp.float32))
    compared = [
        (gate, wide_gate)
        for (path, gate), wide_gate in zip(
            jax.tree.leaves_with_path(gates), jax.tree.leaves(wide_gates), strict=True
        )
        if same_gate is True or same_gate in jax.tree_util.keystr(path)
    ]
    assert compared
    for gate, wide_gate in compared:
        assert float(jnp.std(wide_gate)) / float(jnp.mean(wide_gate)) > 0.01
        np.testing.assert_allclose(gate, wide_gate, rtol=1e-5)


def picking(variables):
    """Every convolution but the 1x1 ones picks a channel for each of its own: no sum to round."""

    def pick(path, kernel):
        if path[-1].key != "kernel" or kernel.shape[0] == 1:
            return kernel
        size, _, channels, features = kernel.shape
        own = jnp.arange(features)
        return jnp.zeros_like(kernel).at[size // 2, size // 2, own % channels, own].set(1)

    return jax.tree.map_with_path(pick, variables)


def centred(layer):
    """So biased that inputs around 100 give outputs around zero, where sigmoids are steep."""
    return {**layer, "bias": -100 * layer["kernel"].sum(-2).reshape(-1)}
