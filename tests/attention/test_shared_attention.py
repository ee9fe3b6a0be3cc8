"""One layer for several maps: counted once, its gradients summed, and its errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from flaxattn import BatchNorm, initialise, weights
from flaxattn.attention import (
    CBAM,
    DenseImplicit,
    EfficientChannel,
    SharedAttention,
    SpatialAttention,
    SqueezeExcite,
)
from flaxattn.errors import InputError

KEYS = jax.random.split(jax.random.key(0), 3)
MAPS = [
    jax.random.normal(key, (2, size, size + 1, 32))
    for key, size in zip(KEYS, (8, 4, 1), strict=True)
]
FACTORIES = [partial(SqueezeExcite, reduction=4), CBAM.official, DenseImplicit]


def by_class(factory):
    factory = getattr(factory, "func", factory)
    return getattr(factory, "__self__", factory).__name__


@pytest.mark.parametrize("factory", FACTORIES, ids=by_class)
def test_variables_are_those_of_one_layer(factory):
    key = jax.random.key(1)
    shared = jax.eval_shape(SharedAttention(factory).init, key, MAPS)
    alone = jax.eval_shape(factory().init, key, MAPS[0])
    assert shared == alone


def test_each_map_is_answered_as_by_the_layer_alone():
    layer, shared = FACTORIES[0](), SharedAttention(FACTORIES[0])
    variables = jax.jit(layer.init)(jax.random.key(1), MAPS[0])
    answers, state = shared.apply(variables, MAPS, mutable=["intermediates"])
    assert isinstance(answers, list)
    for x, y, gate in zip(MAPS, answers, state["intermediates"]["attention"], strict=True):
        np.testing.assert_array_equal(y, layer.apply(variables, x))
        np.testing.assert_allclose(y, x * gate[:, None, None, :], rtol=1e-6)


def test_gradients_are_the_sum_over_the_maps():
    layer, shared = FACTORIES[0](), SharedAttention(FACTORIES[0])
    variables = jax.jit(layer.init)(jax.random.key(1), MAPS[0])

    def loss(answers):
        return sum(jnp.sin(y).sum() for y in answers)

    together = jax.jit(jax.grad(lambda v: loss(shared.apply(v, MAPS))))(variables)
    alone = jax.jit(jax.jacobian(lambda v: [loss([layer.apply(v, x)]) for x in MAPS]))(variables)
    for ours, *parts in zip(*map(jax.tree.leaves, (together, *alone)), strict=True):
        assert all(abs(part).max() > 0 for part in parts)
        np.testing.assert_allclose(ours, sum(parts), rtol=1e-4, atol=1e-5)


def test_the_carry_passes_from_map_to_map():
    layer, shared = DenseImplicit(), SharedAttention(DenseImplicit)
    variables = jax.jit(layer.init)(jax.random.key(1), MAPS[0])
    carry = layer.initial_carry(MAPS[0])
    for x, y in zip(MAPS, shared.apply(variables, MAPS), strict=True):
        expected, carry = layer.apply(variables, x, carry, method="step")
        np.testing.assert_array_equal(y, expected)


def test_statistics_move_once_for_each_map():
    factory = partial(SpatialAttention, norm=BatchNorm)
    layer, shared = factory(), SharedAttention(factory)
    variables = jax.jit(shared.init)(jax.random.key(1), MAPS)
    train = {"train": True, "mutable": ["batch_stats"]}
    answers, moved = jax.jit(partial(shared.apply, **train))(variables, MAPS)
    for x, y in zip(MAPS, answers, strict=True):
        expected, state = jax.jit(partial(layer.apply, **train))(variables, x)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        variables = {**variables, **state}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), moved, state)


@pytest.mark.parametrize("factory", [partial(EfficientChannel, kernel_size=3), SpatialAttention])
def test_layers_without_weights_for_each_channel_take_unequal_ones(factory):
    maps = [MAPS[0], MAPS[1][..., :8]]
    shared = SharedAttention(factory)
    answers = shared.apply(jax.jit(shared.init)(jax.random.key(1), maps), maps)
    assert [y.shape for y in answers] == [x.shape for x in maps]


@pytest.mark.parametrize(
    ("layer", "maps", "sentence"),
    [
        (
            SqueezeExcite,
            [MAPS[0], MAPS[1][..., :16]],
            r"SqueezeExcite has weights for maps of 32 channels.* \(2, 4, 5, 16\): bring the maps",
        ),
        (DenseImplicit, [MAPS[0], MAPS[1][..., :16]], "DenseImplicit has weights for maps of 32"),
        (SqueezeExcite, [], r"\[\] given: pass a sequence"),
        (SqueezeExcite, MAPS[0], r"an array \(2, 8, 9, 32\) given: pass a sequence"),
        (
            SqueezeExcite(),
            MAPS,
            r"layer=SqueezeExcite\(\.\.\.\) is a layer already: pass the class",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(layer, maps, sentence):
    with pytest.raises(InputError, match=sentence):
        SharedAttention(layer).init(jax.random.key(0), maps)


def test_weights_that_fit_no_map_are_not_the_maps_fault():
    variables = SqueezeExcite().init(jax.random.key(0), MAPS[0][..., :16])
    with pytest.raises(ScopeParamShapeError):
        SharedAttention(SqueezeExcite).apply(variables, MAPS)


@pytest.mark.parametrize(
    ("factory", "naming"),
    [(partial(SqueezeExcite, use_bias=False), "articles"), (CBAM.official, "official")],
)
def test_weights_are_those_of_the_layer(factory, naming):
    """Under the names of each source that the layer knows, and back."""
    layer, shared = factory(), SharedAttention(factory)
    abstract = weights.abstract_variables(layer, MAPS[0].shape)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("float32"), abstract)
    state = weights.to_torch(variables, naming, module=layer)
    loaded = weights.load_pretrained(shared, state, [x.shape for x in MAPS])
    assert loaded.naming == naming
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    back = weights.to_torch(loaded.variables, naming, module=shared)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_a_shared_layer_starts_as_the_layer():
    shared, layer = SharedAttention(FACTORIES[0]), FACTORIES[0]()
    started = initialise(shared, jax.random.key(1), [x.shape for x in MAPS])
    alone = initialise(layer, jax.random.key(1), MAPS[0].shape)
    jax.tree.map(np.testing.assert_array_equal, started, alone)
