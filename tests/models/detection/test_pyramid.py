"""Attention at the levels of a pyramid: where it stands, that it can start unseen, and fusion."""

import functools

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxattn import ATTENTION, InputError, create_attention, graft, initialise
from flaxattn.models.detection import create_detector
from flaxattn.models.detection.pyramid import FeaturePyramid
from flaxattn.models.place import place
from flaxattn.models.placement import Places
from tests.attention import parity
from tests.attention.examples import fields

LEVELS, FEATURES = 3, 32
# What cannot stand at a level; all else in ATTENTION must start unseen there.
CONVOLUTIONS = (
    *("botnet", "cond_conv", "dynamic_conv", "halo", "lambda", "pyramid_squeeze", "sk"),
    "split_attention",
)
HEADS = ("psanet", "simplified_psa")
STANDING = sorted(ATTENTION.keys() - {*CONVOLUTIONS, *HEADS})
# One of each kind of start, and one whose start is mixed in.
FEW = ("gated_channel", "generalized", "global_context", "non_local", "se", "simam", "triplet")


def pyramid(attention=None, fuse=None):
    places = Places([1] * LEVELS, ("post", "lateral", "input"))
    return FeaturePyramid(
        LEVELS, FEATURES, attention=place("attention", attention, places), fuse=fuse
    )


def maps():
    rng = np.random.default_rng(0)
    shapes = ((1, 16, 24, 16), (1, 8, 12, 32), (1, 4, 6, 64))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@functools.cache
def plain():
    variables = jax.jit(pyramid().init)(jax.random.key(0), maps())
    return variables, jax.jit(pyramid().apply)(variables, maps())


@pytest.mark.parametrize(
    ("where", "layers"),
    [
        ({"position": "post"}, {"attention_blocks_0", "attention_blocks_1", "attention_blocks_2"}),
        ({"position": "input", "stages": (1, 3)}, {"attention_blocks_0", "attention_blocks_2"}),
        ({"position": "lateral", "share": True}, {"attention_block"}),
    ],
    ids=["post", "input", "lateral"],
)
def test_layers_stand_where_they_are_placed(where, layers):
    attended = pyramid({"name": "se", "reduction": 2, **where})
    shapes = jax.eval_shape(attended.init, jax.random.key(0), maps())["params"]
    before = plain()[0]["params"].keys()
    assert shapes.keys() - before == layers
    assert before <= shapes.keys()
    channels = {shapes[name]["fc1"]["kernel"].shape[-2] for name in layers}
    assert channels == ({16, 64} if where["position"] == "input" else {FEATURES})


def at(where, names, *, quick=()):
    """Each name and where it stands, as parameters of a test: slow ones, but for those `quick`."""
    marks = [() if name in quick else pytest.mark.slow for name in names]
    return [pytest.param(name, where, marks=m) for name, m in zip(names, marks, strict=True)]


def grafted(name, where):
    own = fields(name) | {"bat": {"block_size": 2}}.get(name, {})  # for maps of 4x6
    return {"name": name, **own, **where, "graft": True}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *at({"position": "post"}, STANDING, quick=("dia", "global_context", "se")),
        *at({"position": "lateral"}, FEW, quick=("triplet",)),
        *at({"position": "input"}, FEW, quick=("non_local",)),
        *at({"position": "post", "share": True}, FEW, quick=("simam",)),
    ],
    ids=str,
)
def test_a_graft_leaves_the_maps_as_they_are(name, where):
    variables, expected = plain()
    attended = pyramid(grafted(name, where))

    @jax.jit
    def grow(variables):
        grown = attended.init(jax.random.key(1), maps())
        kept = grown | {"params": grown["params"] | variables["params"]}
        return kept["params"], attended.apply(kept, maps())

    params, found = grow(variables)
    assert params.keys() > variables["params"].keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("names", "where", "sentence"),
    [
        (CONVOLUTIONS, {}, "replaces a convolution"),
        (HEADS, {}, "is a head and changes the number of channels"),
        (["dia"], {"share": True}, "carries a state from block to block"),
    ],
    ids=["convolutions", "heads", "states"],
)
def test_what_cannot_stand_at_a_level_is_refused(names, where, sentence):
    for name in names:
        with pytest.raises(InputError, match=sentence):
            pyramid({"name": name, **where})


@functools.cache
def detector():
    """A tiny one, its variables, images, and what it finds in them."""
    model = create_detector(
        "fasterrcnn_resnet50_fpn",
        num_classes=3,
        features=FEATURES,
        body={"stage_sizes": (1, 1), "block": "basic", "width": 16},
        taps=((1, -1), (2, -1)),
        proposals={"pre_nms_test": 20, "post_nms_test": 20, "anchor_sizes": ((16,), (32,), (64,))},
        heads={"hidden_features": 16, "num_detections": 10, "formulation": "gather"},
    )
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    variables = initialise(model, jax.random.key(0), images.shape)
    return model, variables, images, detections(model, variables, images)


def detections(model, variables, images):
    """The maps by one program, and what is in them by another.

    XLA rounds two whole programs differently, by up to 4e-6 of the boxes' pixels.
    """
    maps = jax.jit(functools.partial(model.apply, method="pyramid"))(variables, images)

    @jax.jit
    def found(variables, images, maps):
        def given(call, args, kwargs, context):
            return maps if context.method_name == "pyramid" else call(*args, **kwargs)

        with nn.intercept_methods(given):
            return model.apply(variables, images)

    return found(variables, images, maps)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *at({"position": "post"}, ("gated_channel", "non_local", "se"), quick=("se",)),
        *at({"position": "lateral"}, ("cbam",)),
        *at({"position": "input", "stages": 2}, ("eca",)),
        *at({"position": "post", "share": True}, ("coordinate",)),
    ],
    ids=str,
)
def test_a_graft_leaves_the_detections_as_they_are(name, where):
    model, variables, images, expected = detector()
    assert expected.valid.any()
    attention = {"name": name, **fields(name), **where}
    grown, more = graft(model, variables, attention=attention, input_shape=images.shape)
    new = flatten_dict(more).keys() - flatten_dict(variables).keys()
    assert {path[1:3] for path in new} == {("backbone", "fpn")}
    jax.tree.map(np.testing.assert_array_equal, detections(grown, more, images), expected)


def article(attn, features):
    """The feature pyramid of the fourth article, which adds the result before to each one."""
    attn_features = []
    for feat in features:
        attn_feat = attn(feat)
        if len(attn_features) > 0:
            attn_feat = attn_feat + torch.nn.functional.interpolate(
                attn_features[-1], size=attn_feat.shape[2:], mode="bilinear"
            )
        attn_features.append(attn_feat)
    return attn_features


@pytest.mark.parametrize("fuse", ["bottom_up", "top_down"])
def test_fusion_is_the_articles_over_fine_or_over_coarse_levels_first(fuse):
    variables, outputs = plain()
    *levels, _ = outputs
    apply = jax.jit(pyramid({"name": "simam", "share": True}, fuse).apply)
    *found, additional = apply(variables, maps())

    layer = jax.jit(functools.partial(create_attention("simam").apply, {}))
    order = 1 if fuse == "bottom_up" else -1
    given = [torch.tensor(parity.to_channels_first(np.asarray(layer(x)))) for x in levels]
    expected = article(lambda x: x, given[::order])[::order]
    for ours, theirs in zip(found, expected, strict=True):
        assert parity.difference(ours, parity.to_channels_last(theirs.numpy())) < 1e-6
    np.testing.assert_array_equal(additional, found[-1][:, ::2, ::2])


def test_maps_of_unequal_channels_share_no_weights():
    attended = pyramid({"name": "se", "reduction": 2, "share": True, "position": "input"})
    with pytest.raises(InputError, match="bring the maps to equal channels"):
        jax.eval_shape(attended.init, jax.random.key(0), maps())
