"""Attention grafted into a network: its logits stay, and the new parameters learn."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn import create_model, graft
from flaxattn.attention import ATTENTION, SqueezeExcite
from flaxattn.attention.graft import Graft
from flaxattn.errors import InputError
from flaxattn.layers.norm import BatchNorm, GroupNorm
from flaxattn.models import Placement
from tests.models.networks import shapes_of

MECHANISMS = [
    name
    for name, make in sorted(ATTENTION.items())
    if Placement(make).layer.role in ("recalibrate", "context")
]
# What a layer needs beside its defaults on the small maps of these networks.
FIELDS = {
    "bat": {"block_size": 4},
    "halo": {"block_size": 2},
    "sge": {"groups": 8},
    "shuffle": {"groups": 8},
    "window": {"num_heads": 4},
}
# Where layers go in whole networks: the slot, the place in it, the images' size, and the network's
# fields.
NETWORKS = {
    "resnet18": ("attention", {"stages": 2, "blocks": "last"}, 32, {}),
    "resnet50": ("attention", {"stages": 2, "blocks": "last"}, 32, {}),
    "vgg11_bn": ("attention", {"after": "conv4_2"}, 32, {"hidden_features": 64}),
    "mobilenetv3_small_100": ("context", {"stages": 4}, 64, {}),
}
# What remembers the blocks before has no part in a layer that stands alone.
UNUSED = {("hidden_fc1", "kernel"), ("hidden_fc1", "bias"), ("hidden_fc2", "kernel")}
# Of each kind of start one, and the slow rest under make test-all.
FEW = ("gated_channel", "generalized", "global_context", "se", "simam", "triplet")


def trained(model, size):
    """Variables of `model`, their batch statistics of images, as if it had been trained."""
    images = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(model.param_dtype)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    moved = jax.jit(functools.partial(apply, model), static_argnums=2)
    return variables | moved(variables, images, True)[1], images


def apply(model, variables, images, train):
    rngs = {"dropout": jax.random.key(1)}
    return model.apply(variables, images, train, mutable=["batch_stats"], rngs=rngs)


def logits(model, variables, images, train):
    return apply(model, variables, images, train)[0]


@functools.cache
def plain(network, size, **fields):
    """A model, its variables, and images."""
    model = create_model(network, num_classes=3, **fields)
    return model, *trained(model, size)


def check(base, slot, placement, *, steps):
    """At most 1e-6 at step 0, a gradient for the new parameters, and after `steps` all moved.

    The new parameters alone are trained. In float64 the logits move by 1e-12 at most.
    """
    model, variables, images = base
    grown, all_variables = graft(model, variables, **{slot: placement}, input_shape=images.shape)
    old, new = flatten_dict(variables), flatten_dict(all_variables)
    for path, leaf in old.items():
        assert new[path] is leaf if path in new else slot == "conv"
    added = [path for path in new if path not in old and path[0] == "params"]
    assert added

    # In one program: XLA rounds a network in two programs differently, by 2e-6 of the logits.
    @jax.jit
    def both(variables, all_variables):
        return [
            (logits(model, variables, images, train), logits(grown, all_variables, images, train))
            for train in (False, True)
        ]

    for expected, ours in both(variables, all_variables):
        bound = 1e-6 if expected.dtype == jnp.float32 else 1e-12
        assert abs(ours - expected).max() <= bound * abs(expected).max()

    labels = jnp.arange(4) % 3
    # Its steps do not shrink with gradients: VGG's are too small for a scale of one to show it.
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, moments):
        def loss(params):
            answer = logits(grown, unflatten_dict(new | params), images, True)
            return optax.softmax_cross_entropy_with_integer_labels(answer, labels).mean()

        gradients = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
            updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, gradients

    params = start = {path: new[path] for path in added}
    moments = optimizer.init(params)
    for index in range(steps):
        params, moments, gradients = step(params, moments)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
        if index == 0:
            assert max(abs(gradient).max() for gradient in gradients.values()) > 0
    if steps > 1:
        same = {path[-2:] for path in added if np.array_equal(start[path], params[path])}
        assert same == (UNUSED if placement.get("name") == "dia" else set())


SMALL = {"stage_sizes": (1, 1), "width": 32, "stem": "small"}


def small(name, **fields):
    return plain(name, 8, **SMALL, **fields)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in MECHANISMS],
)
def test_every_mechanism_starts_as_the_identity(name):
    check(small("resnet18"), "attention", {"name": name, **FIELDS.get(name, {})}, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_learns_in_whole_networks(name, network):
    slot, place, size, fields = NETWORKS[network]
    placement = {"name": name, **place, **FIELDS.get(name, {})}
    check(plain(network, size, **fields), slot, placement, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "name", "fields"),
    [
        *itertools.product(["resnet18", "resnet50"], ["sk"], [{"groups": 1, "dilated": False}]),
        *itertools.product(["resnet18", "resnet50"], ["dynamic_conv", "cond_conv"], [{}]),
        ("resnext50_32x4d", "sk", {"dilated": False}),
    ],
)
def test_convolutions_are_replaced_in_whole_networks(network, name, fields):
    """In float64: larger kernels and mixed ones round otherwise, and train mode's norms, of four
    values in the last stage, make up to 1.2e-4 of the logits of that in float32."""
    placement = {"name": name, "stages": (2, 3), **fields}
    with jax.enable_x64(True):
        check(plain(network, 32, param_dtype="float64"), "conv", placement, steps=20)


@pytest.mark.parametrize("variant", [None, "official", "timm", "light"])
def test_variants_of_cbam_learn(variant):
    placement = {"name": "cbam", "variant": variant, "reduction": 4}  # two units may both be dead
    check(small("resnet18"), "attention", placement, steps=20)


def test_in_float64():
    with jax.enable_x64(True):
        base = small("resnet18", param_dtype="float64")
        check(base, "attention", {"name": "se", "reduction": 4}, steps=20)


def test_after_the_add():
    check(small("resnet50"), "context", {"name": "non_local"}, steps=20)


@pytest.mark.parametrize(
    ("block", "placement"),
    [
        ("basic", {"name": "sk", "dilated": False, "groups": 1}),
        pytest.param(
            "bottleneck",
            {"name": "sk", "dilated": False, "kernel_sizes": (3, 5, 7)},
            marks=pytest.mark.slow,
        ),
        ("basic", {"name": "sk", "variant": "article_s2", "softmax": True, "dilated": False}),
        ("basic", {"name": "dynamic_conv"}),
        ("bottleneck", {"name": "cond_conv", "groups": 32, "stages": 2}),
    ],
    ids=str,
)
def test_what_replaces_a_convolution_takes_over_its_kernel(block, placement):
    grouped = {"groups": 32, "group_width": 4} if block == "bottleneck" else {}
    base = small("resnet10", block=block, **grouped)
    check(base, "conv", placement, steps=20)


def test_a_gate_keeps_the_layers_own_parameters():
    """No wrapper's name, no number beside: the layer's weights load as ever."""
    x = jnp.ones((1, 4, 4, 32))
    plain, grafted = SqueezeExcite(), Graft(SqueezeExcite(parent=None))
    shapes = [
        jax.tree.map(jnp.shape, jax.jit(layer.init)(jax.random.key(0), x))
        for layer in (plain, grafted)
    ]
    assert shapes[0] == shapes[1]


def test_a_config_says_it_too():
    model, variables, images = small("resnet18")
    grown, _ = graft(model, variables, attention="se", input_shape=images.shape)
    placement = {"name": "se", "graft": True}
    said = create_model("resnet18", num_classes=3, attention=placement, **SMALL)
    init = [jax.jit(m.init)(jax.random.key(0), images) for m in (grown, said)]
    jax.tree.map(np.testing.assert_array_equal, *init)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "nothing to graft: pass attention="),
        ({"attention": "sse"}, "unknown attention 'sse': did you mean se"),
        ({"attention": "sk"}, r"sk replaces a convolution: pass conv=dict\(name='sk'\)"),
        ({"attention": {"name": "se", "stages": 9}}, "the backbone has stages 1 to 2"),
        ({"conv": "sk"}, "dilated=True: the 3x3 kernels of kernel_sizes=.* use dilated=False"),
        (
            {"conv": {"name": "sk", "dilated": False}},
            "cannot hold the kernel .* it replaces",
        ),
        ({"conv": {"name": "sk", "variant": "article_s2"}}, "dilated=True"),
        (
            {"conv": {"name": "sk", "variant": "article_s2", "dilated": False}},
            "softmax=False: branches whose weights do not sum to one",
        ),
        ({"conv": {"name": "sk", "kernel_sizes": (1, 1), "groups": 1}}, "no smaller kernel"),
        ({"conv": {"name": "halo", "block_size": 2}}, "Halo.* has no form that equals a conv"),
        ({"conv": {"name": "sk", "graft": True}}, r"call flaxattn.graft\(model, variables, conv="),
    ],
)
def test_what_cannot_be_grafted(arguments, sentence):
    model, variables, _ = small("resnet18")
    with pytest.raises(InputError, match=sentence):
        graft(model, variables, **arguments, input_shape=(1, 8, 8, 3))


@pytest.mark.parametrize(
    "norm", [GroupNorm, functools.partial(BatchNorm, epsilon=1e-2)], ids=["group", "batch"]
)
def test_a_layer_with_another_normalisation_than_the_networks(norm):
    model = create_model("resnet18", **SMALL, norm=norm)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    placement = {"name": "sk", "groups": 1, "dilated": False}
    with pytest.raises(InputError, match="SelectiveKernel ends in another normalisation than the"):
        graft(model, variables, conv=placement, input_shape=(1, 8, 8, 3))


def test_a_layer_with_the_networks_own_normalisation():
    norm = functools.partial(BatchNorm, epsilon=1e-2)
    model = create_model("resnet18", num_classes=3, **SMALL, norm=norm)
    placement = {"name": "sk", "groups": 1, "dilated": False, "norm": norm}
    check((model, *trained(model, 8)), "conv", placement, steps=1)


@pytest.mark.parametrize("network", ["resnet18", "mobilenetv2_035"])
def test_a_class_goes_where_its_name_goes(network):
    model = create_model(network, num_classes=3)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes_of(model))
    by_name, by_class = (
        graft(model, variables, attention=attention, input_shape=(1, 32, 32, 3))[0].attention
        for attention in ("se", SqueezeExcite)
    )
    assert by_class.position == by_name.position
    assert (by_class.stages, by_class.blocks) == (by_name.stages, by_name.blocks)


def test_variables_of_another_model_and_a_taken_slot():
    model, variables, _ = small("resnet18")
    with pytest.raises(InputError, match=r"\d+ of the variables are missing: "):
        graft(
            create_model("resnet50", **SMALL), variables, attention="se", input_shape=(1, 8, 8, 3)
        )
    taken = model.clone(attention="se")
    with pytest.raises(InputError, match="the attention slot of this ResNet is taken"):
        graft(taken, variables, attention="eca", input_shape=(1, 8, 8, 3))
