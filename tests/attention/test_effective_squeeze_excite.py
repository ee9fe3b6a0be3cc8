import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxattn.attention import EffectiveSqueezeExcite
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import effective_squeeze_excite
from tests.torch_reference.dual_attention import Hardsigmoid
from tests.torch_reference.torchvision_shim import timm

CASES = [
    Case(
        ("ese", "ese.timm"),
        {},
        lambda: timm.layers.EffectiveSEModule(32, gate_layer=Hardsigmoid),
        "timm",
    ),
    Case(
        ("ese.official",),
        {},
        lambda: effective_squeeze_excite.ESEModule(32),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("ese.timm_max",),
        {},
        lambda: timm.layers.EffectiveSEModule(32, add_maxpool=True, gate_layer=Hardsigmoid),
        "timm",
        on=Inputs(maps=((13, 7), (1, 1))),
    ),
    Case(
        ("ese.timm_max, after the authors'",),
        {},
        lambda: effective_squeeze_excite.ESEModule(32, add_max=True),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
]


def test_zero_weights_halve_the_input():
    layer = EffectiveSqueezeExcite(kernel_init=nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 32))
    np.testing.assert_allclose(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.5 * x, rtol=1e-6
    )


def test_beyond_three_the_gate_is_shut_or_open_and_passes_no_gradient():
    layer = EffectiveSqueezeExcite(kernel_init=lambda *_: jnp.eye(5)[None, None])
    pooled = jnp.array([[-4.0, -3.0, 0.0, 1.5, 4.0]])
    variables = layer.init(jax.random.key(0), pooled, method="gate")
    gate, pullback = jax.vjp(lambda z: layer.apply(variables, z, method="gate"), pooled)
    np.testing.assert_allclose(gate, [[0, 0, 0.5, 0.75, 1]], rtol=1e-6)
    (gradient,) = pullback(jnp.ones_like(gate))
    np.testing.assert_allclose(gradient[0, [0, 2, 3, 4]], [0, 1 / 6, 1 / 6, 0], rtol=1e-6)


def test_parameter_count_and_the_authors_start():
    params = EffectiveSqueezeExcite.official().init(jax.random.key(0), jnp.zeros((1, 1, 1, 256)))
    assert sum(p.size for p in jax.tree.leaves(params)) == 256**2 + 256
    std = float(jnp.std(params["params"]["fc"]["kernel"]))
    np.testing.assert_allclose(std, (2 / 256) ** 0.5, rtol=0.02)


def test_gate_is_the_call_without_pooling_and_multiplication():
    contract.check_gate(EffectiveSqueezeExcite())


def test_bfloat16():
    layer = EffectiveSqueezeExcite(kernel_init=nn.initializers.normal(0.001))
    contract.check_bfloat16(layer)
