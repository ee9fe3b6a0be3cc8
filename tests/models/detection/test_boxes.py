"""Boxes and their deltas against torchvision's, and there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.models.detection.boxes import clip, decode, encode, has_sides, iou
from tests.torch_reference.torchvision_shim import torchvision

WEIGHTS = ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0))


def random_boxes(rng, count, least=0.0):
    corner = rng.uniform(-20, 200, size=(count, 2))
    return np.concatenate([corner, corner + rng.uniform(least, 150, size=(count, 2))], axis=-1)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_overlaps_and_edges_are_torchvisions():
    rng = np.random.default_rng(0)
    one, other = random_boxes(rng, 7), random_boxes(rng, 5)
    ops, size = torchvision.ops, (140, 170)
    tensors = torch.tensor(one), torch.tensor(other)
    np.testing.assert_allclose(iou(one, other), ops.box_iou(*tensors), rtol=1e-14)
    cut = clip(jnp.asarray(one), jnp.array(size))
    np.testing.assert_array_equal(cut, ops.clip_boxes_to_image(tensors[0], size))
    kept = np.flatnonzero(has_sides(cut, 40))
    np.testing.assert_array_equal(kept, ops.remove_small_boxes(torch.tensor(np.array(cut)), 40))
    assert 0 < len(kept) < len(one)


def test_empty_boxes_overlap_nothing():
    empty = jnp.array([[3.0, 3, 3, 3], [0, 0, 0, 0]])
    np.testing.assert_array_equal(iou(empty, jnp.concatenate([empty, empty + 1])), 0)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_deltas_are_torchvisions(weights):
    rng = np.random.default_rng(0)
    boxes, anchors = (random_boxes(rng, 9, least=1.0) for _ in range(2))
    coder = torchvision.models.detection._utils.BoxCoder(weights)
    theirs = coder.encode_single(torch.tensor(boxes), torch.tensor(anchors))
    np.testing.assert_allclose(encode(boxes, anchors, weights), theirs, rtol=1e-12)
    wild = rng.normal(size=(9, 4)) * 30  # beyond where sides are cut
    theirs = coder.decode_single(torch.tensor(wild), torch.tensor(anchors))
    np.testing.assert_allclose(decode(wild, anchors, weights), theirs, rtol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), weights=st.sampled_from(WEIGHTS))
def test_decoding_undoes_encoding(seed, weights):
    rng = np.random.default_rng(seed)
    anchors = random_boxes(rng, 8, least=3.0)
    boxes = random_boxes(rng, 8, least=0.01)
    back = decode(encode(boxes, anchors, weights), anchors, weights)
    np.testing.assert_allclose(back, boxes, atol=1e-9)


def test_deltas_of_padding_and_their_gradients_are_finite():
    zero = jnp.zeros((1, 4))
    found, pullback = jax.vjp(encode, zero, zero)
    for array in (found, *pullback(jnp.ones((1, 4)))):
        assert np.isfinite(array).all()
