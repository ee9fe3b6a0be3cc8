"""Attention at the levels of a pyramid: where it stands, that it can start unseen, and fusion."""

import functools

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from flaxattn import InputError, create_attention, graft, initialise
from flaxattn.models.detection import create_detector
from flaxattn.models.detection.pyramid import FeaturePyramid
from flaxattn.models.place import place
from flaxattn.models.placement import Places
from tests.attention import parity

LEVELS, FEATURES = 3, 8


def pyramid(attention=None, fuse=None):
    places = Places([1] * LEVELS, ("post", "lateral", "input"))
    return FeaturePyramid(
        LEVELS, FEATURES, attention=place("attention", attention, places), fuse=fuse
    )


def maps():
    rng = np.random.default_rng(0)
    shapes = ((1, 16, 24, 8), (1, 8, 12, 16), (1, 4, 6, 32))
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
    assert channels == ({8, 32} if where["position"] == "input" else {FEATURES})


@pytest.mark.parametrize("position", ["post", "lateral", "input"])
@pytest.mark.parametrize("layer", [{"name": "se", "reduction": 2}, {"name": "simam"}], ids=str)
def test_a_graft_leaves_the_maps_as_they_are(layer, position):
    variables, expected = plain()
    attended = pyramid({**layer, "position": position, "graft": True})
    grown = jax.jit(attended.init)(jax.random.key(1), maps())
    kept = {**grown["params"], **variables["params"]}
    found = jax.jit(attended.apply)({"params": kept}, maps())
    assert grown["params"].keys() - variables["params"].keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_detector_is_grafted_by_name():
    model = create_detector(
        "fasterrcnn_resnet50_fpn",
        num_classes=3,
        features=FEATURES,
        body={"stage_sizes": (1, 1, 1, 1), "block": "basic", "width": 8},
    )
    shape = (1, 64, 64, 3)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = initialise(model, jax.random.key(0), shape)
    attention = {"name": "se", "reduction": 4}
    grown, more = graft(model, variables, attention=attention, input_shape=shape)
    new = flatten_dict(more).keys() - flatten_dict(variables).keys()
    assert {path[:3] for path in new} == {("params", "backbone", "fpn")}
    before, after = (
        jax.jit(functools.partial(detector.apply, method="pyramid"))(own, x)
        for detector, own in ((model, variables), (grown, more))
    )
    jax.tree.map(np.testing.assert_array_equal, after, before)


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
