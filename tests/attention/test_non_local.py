"""The non-local block: four pairwise functions, where it pools, how it starts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn.attention.non_local import MODES, NonLocal, max_pool_by_two, zero_batch_norm
from flaxattn.errors import InputError
from flaxattn.layers.widths import reduced_features
from tests.attention import contract, parity
from tests.attention.parity import FEATURES, Case, Inputs
from tests.torch_reference import non_local
from tests.torch_reference.torchvision_shim import timm

ODD = ((13, 7),)


alexhex7 = partial(partial, non_local.AlexHex7, FEATURES)

# Batch norm subtracts what the biases of values and of the last convolution add, in train mode, and
# the softmax what a key's adds. Torch's own gradients of them are rounding: against float64 up to
# 2e-3 of a hundredth of the largest gradient on 13x7 maps.
CASES = [
    Case(
        ("non_local",),
        {},
        alexhex7(sub_sample=False),
        "alexhex7_no_pool",
        cancelled=("g.bias", "W.0.bias", "phi.bias"),
    ),
    Case(
        ("non_local.alexhex7",),
        {},
        alexhex7(),
        "alexhex7",
        on=Inputs(maps=ODD, refused=((1, 1),)),
        cancelled=("g.0.bias", "W.0.bias", "phi.0.bias"),
    ),
    Case(
        ("non_local.official",),
        {},
        lambda: non_local.Official(FEATURES),
        None,
        on=Inputs(maps=ODD, refused=((1, 1),)),
        cancelled=("g.bias", "out.bias", "phi.bias"),
    ),
    Case(
        ("non_local.mmcv",),
        {},
        lambda: non_local.MMCV(FEATURES),
        "mmcv",
        on=Inputs(maps=(*ODD, (1, 1))),
    ),
    # 144 / 8 = 18 would round to 16, which is more than a tenth less.
    *[
        Case(
            (row,),
            {},
            partial(timm.layers.NonLocalAttn, features),
            "timm",
            on=Inputs(maps=maps, features=features),
            exact=True,
            cancelled=("g.bias", "z.bias", "p.bias"),
        )
        for row, features, maps in (
            ("non_local.timm, 144 channels", 144, ODD),
            ("non_local.timm", FEATURES, (*ODD, (1, 1))),
        )
    ],
    *[
        Case(
            (f"non_local.alexhex7, {mode}",),
            {"mode": mode, "norm": None},
            alexhex7(mode=mode, bn_layer=False),
            "alexhex7_no_norm",
            on=Inputs(maps=ODD),
        )
        for mode in MODES[1:]
    ],
    Case(
        ("non_local, concatenation, chunked",),
        {"mode": "concatenation", "norm": None, "query_chunk": 40},
        alexhex7(mode="concatenation", sub_sample=False, bn_layer=False),
        "alexhex7_no_pool_no_norm",
        on=Inputs(maps=ODD),
    ),
    Case(
        ("non_local.mmcv, concatenation, pooled, BatchNorm",),
        {
            "mode": "concatenation",
            "sub_sample": "after",
            "norm": zero_batch_norm,
            "out_bias": False,
        },
        partial(non_local.MMCV, FEATURES, "concatenation", sub_sample=True, norm=True),
        "mmcv_pool",
        on=Inputs(maps=ODD),
    ),
    *[
        Case(
            (f"non_local.alexhex7, {len(size)}-D",),
            {},
            alexhex7(dimension=len(size)),
            "alexhex7",
            on=Inputs(maps=(size,)),
            cancelled=("g.0.bias", "W.0.bias", "phi.0.bias"),
        )
        for size in ((9,), (3, 5, 4))
    ],
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [None, zero_batch_norm])
def test_starts_as_the_identity_and_lets_gradients_in(mode, norm):
    layer = NonLocal(mode=mode, norm=norm, sub_sample="before")
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 16))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)
    answer, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(answer, x)

    def loss(params):
        answer, _ = layer.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(answer))

    grads = jax.grad(loss)(variables["params"])
    last = grads["out"]["kernel"] if norm is None else grads["bn"]["scale"]
    assert abs(last).max() > 1e-3


def drawn(layer, x):
    """Variables without zeros, so that the layer is no identity."""
    leaves, tree = jax.tree.flatten(jax.jit(layer.init)(jax.random.key(1), x))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(abs(rng.normal(size=p.shape))) for p in leaves])


def test_pooling_before_and_after_the_convolutions_differs():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 16))
    before, after = NonLocal(sub_sample="before"), NonLocal(sub_sample="after")
    variables = jax.tree.map(lambda p: -p, drawn(before, x))  # a maximum becomes a minimum
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])
    assert abs(before.apply(variables, x) - after.apply(variables, x)).max() > 0.01


@pytest.mark.parametrize("shape", [(9,), (7, 8), (3, 4, 5)])
def test_a_shared_maximum_s_gradient_goes_where_torch_sends_it(shape):
    """Of few different numbers, most squares hold their maximum twice: [[1, 3], [3, 2]]."""
    x = np.random.default_rng(0).integers(0, 3, size=(2, *shape, 3)).astype(np.float32)
    pool = {
        1: torch.nn.MaxPool1d(2),
        2: torch.nn.MaxPool2d(2),
        3: torch.nn.MaxPool3d((1, 2, 2)),
    }[len(shape)]
    theirs = torch.tensor(parity.to_channels_first(x), requires_grad=True)
    answer = pool(theirs)
    cotangent = np.random.default_rng(1).normal(size=answer.shape).astype(np.float32)
    answer.backward(torch.tensor(cotangent))
    ours, pullback = jax.vjp(max_pool_by_two, x)
    np.testing.assert_array_equal(ours, parity.to_channels_last(answer.detach().numpy()))
    (moved,) = pullback(parity.to_channels_last(cotangent))
    np.testing.assert_array_equal(moved, parity.to_channels_last(theirs.grad.numpy()))


@pytest.mark.parametrize("sub_sample", ["before", "after"])
def test_the_last_odd_row_and_column_are_no_sources(sub_sample):
    layer = NonLocal(sub_sample=sub_sample)
    x = jax.random.normal(jax.random.key(0), (1, 5, 7, 16))
    variables = drawn(layer, x)
    _, sown = contract.sown(layer, variables, x)
    assert sown["attention"][0].shape == (1, 35, 6)
    changed = x.at[:, 4].add(1.0).at[:, :, 6].add(1.0)
    difference = layer.apply(variables, x) - layer.apply(variables, changed)
    np.testing.assert_array_equal(difference[:, :4, :6], 0)


@pytest.mark.parametrize("mode", ["gaussian", "dot_product", "concatenation"])
def test_chunks_change_neither_values_nor_gradients(mode):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 16))
    layer = NonLocal(mode=mode, norm=None)
    variables = jax.tree.map(lambda p: 0.1 * p, drawn(layer, x))

    def answer_and_gradients(layer):
        answer, pullback = jax.vjp(layer.apply, variables, x)
        return answer, pullback(jnp.cos(answer))

    full = answer_and_gradients(layer)
    chunked = answer_and_gradients(layer.clone(query_chunk=7))
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(full), strict=True):
        assert parity.difference(ours, theirs) <= 1e-5


def test_scale_belongs_to_the_embedded_gaussian_alone():
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 16))
    for mode in MODES:
        scaled, plain = NonLocal(mode=mode, scale="hidden"), NonLocal(mode=mode)
        variables = drawn(plain, x)
        same = np.array_equal(scaled.apply(variables, x), plain.apply(variables, x))
        assert same == (mode != "embedded_gaussian")


def test_width_in_eights_as_timm_rounds_it():
    for features in range(1, 600):
        ours = reduced_features(features, 8, divisor=8, round_limit=0.9)
        assert ours == timm.layers.make_divisible(features / 8, 8)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_keeps_its_weights_in_float32(mode):
    contract.check_bfloat16(NonLocal(mode=mode), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "shape", "sentence"),
    [
        ({"mode": "embeded_gaussian"}, (1, 4, 4, 16), "unknown mode 'embeded_gaussian': did you"),
        ({"sub_sample": "both"}, (1, 4, 4, 16), "unknown sub_sample 'both'"),
        ({"scale": "output"}, (1, 4, 4, 16), "unknown scale 'output'"),
        ({"sub_sample": "after"}, (1, 1, 1, 16), "leaves nothing of a map of shape"),
        ({"sub_sample": "before"}, (1, 3, 4, 1, 16), "at least two positions along axis 3"),
        ({}, (1, 16), r"shape \(1, 16\) is not \(N, \*spatial, C\) with 1 to 3 spatial axes"),
        ({"reduction": 32}, (1, 4, 4, 16), "reduction=32 leaves no channel of 16"),
        ({"query_chunk": 0}, (1, 4, 4, 16), "query_chunk=0 is below one"),
    ],
)
def test_refuses(fields, shape, sentence):
    with pytest.raises(InputError, match=sentence):
        NonLocal(**fields).init(jax.random.key(0), jnp.zeros(shape))
