import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import CBAM, ChannelAttention, SpatialAttention
from flaxattn.errors import InputError
from flaxattn.layers.norm import BatchNorm
from tests.attention import contract
from tests.attention.parity import Case
from tests.torch_reference import cbam
from tests.torch_reference.torchvision_shim import timm

CASES = [
    Case(
        ("cbam", "cbam.paper", "cbam.article_s0"),
        {"reduction": 4},
        lambda: cbam.CBAMArticle0(32, 4),
        "article_s0",
    ),
    Case(("cbam.article_s2",), {}, lambda: cbam.CBAMArticle2(32), "article_s2"),
    Case(("cbam.official",), {}, lambda: cbam.CBAMOfficial(32), "official"),
    Case(
        ("cbam.timm",),
        {"reduction": 3},
        lambda: timm.layers.cbam.CbamModule(32, rd_ratio=1 / 3),
        "timm",
    ),
    Case(
        ("lcbam", "cbam.light"),
        {"reduction": 3},
        lambda: timm.layers.cbam.LightCbamModule(32, rd_ratio=1 / 3),
        "timm",
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def test_no_two_variants_are_one(x):
    """Biases, kernel size and batch norm made equal, what is left must still tell them apart."""
    same = {"reduction": 3, "use_bias": False, "kernel_size": 7, "spatial_bias": False}
    variants = [variant for variant in CBAM.variants if variant != "paper"]  # which is article 0's
    widths = {v: getattr(CBAM, v)(**same).init(jax.random.key(1), x) for v in variants}
    assert widths["timm"]["params"]["channel"]["fc1"]["kernel"].shape[-1] == 11
    assert widths["article_s0"]["params"]["channel"]["fc1"]["kernel"].shape[-1] == 10

    trees = {}
    for variant in variants:
        variables = getattr(CBAM, variant)().init(jax.random.key(1), x)
        trees[variant] = jax.tree.map(jnp.shape, variables)
    for one, other in itertools.combinations(variants, 2):
        assert trees[one] != trees[other]

    official, timm_like = CBAM.official(use_bias=False), CBAM.timm()
    variables = jax.jit(official.init)(jax.random.key(1), x)
    y = official.apply(variables, x)
    assert abs(timm_like.apply(variables, x) - y).max() > 1e-2
    variables["params"]["spatial"]["conv"]["kernel"] = variables["params"]["spatial"]["conv"][
        "kernel"
    ][:, :, ::-1]
    np.testing.assert_allclose(timm_like.apply(variables, x), y, rtol=1e-5)


def test_it_is_its_halves_in_turn(x):
    variables = CBAM.official().init(jax.random.key(1), x)
    half = {
        name: {kind: tree[name] for kind, tree in variables.items() if name in tree}
        for name in ("channel", "spatial")
    }
    y = ChannelAttention.official().apply(half["channel"], x)
    y = SpatialAttention.official().apply(half["spatial"], y)
    np.testing.assert_array_equal(CBAM.official().apply(variables, x), y)


def test_both_gates_can_be_looked_at(x):
    variables = CBAM().init(jax.random.key(1), x)
    y, gates = contract.sown(CBAM(), variables, x)
    channel, spatial = gates["channel"]["attention"][0], gates["spatial"]["attention"][0]
    assert (channel.shape, spatial.shape) == ((2, 32), (2, 5, 3, 1))
    np.testing.assert_allclose(y, x * channel[:, None, None, :] * spatial, rtol=1e-5)


def test_zero_kernels_quarter_the_input(x):
    layer = CBAM.article_s2(kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 0.25 * x
    )


def test_the_authors_initial_spatial_gate_is_one_half(x):
    norm = partial(BatchNorm, momentum=0.99, scale_init=nn.initializers.zeros)
    layer = CBAM.official(norm=norm)
    _, gates = contract.sown(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    np.testing.assert_array_equal(gates["spatial"]["attention"][0], 0.5)


def test_parameter_counts():
    """2Ch + 2k^2; + h + C + 1 with biases; + 2 of batch norm (mechanisms, A5)."""

    def count(layer):
        variables = jax.eval_shape(
            layer.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 7, 7, 128), jnp.float32)
        )
        return sum(p.size for p in jax.tree.leaves(variables["params"]))

    assert count(CBAM.article_s0()) == 2 * 128 * 8 + 98
    assert count(CBAM.article_s2()) == 2 * 128 * 8 + 8 + 128 + 19
    assert count(CBAM.official()) == 2 * 128 * 8 + 8 + 128 + 100
    assert count(CBAM.timm()) == 2 * 128 * 8 + 100
    assert count(CBAM.light()) == 2 * 128 * 8 + 49 + 2
    assert count(CBAM(depthwise=True)) == 2 * 128 * 8 + 100


def test_what_it_cannot_do(x):
    with pytest.raises(InputError, match="reduction=33 leaves no channel of 32"):
        CBAM(reduction=33).init(jax.random.key(0), x)
    with pytest.raises(InputError, match="kernel_size=4 cannot keep the size"):
        CBAM(kernel_size=4).init(jax.random.key(0), x)


def test_bfloat16():
    layer = CBAM(reduction=4, kernel_init=nn.initializers.normal(0.03))
    contract.check_bfloat16(layer, same_gate="channel")
