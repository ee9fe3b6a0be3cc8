"""Non-maximum suppression against the greedy algorithm, one box after the other."""

import jax
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.models.detection.boxes import iou
from flaxattn.models.detection.nms import nms
from tests.torch_reference import regions

COUNT = 24
run = jax.jit(nms)
overlaps_of = jax.jit(iou)


def greedy(overlaps, threshold, valid, groups):
    keep = np.zeros(len(valid), bool)
    for i in np.flatnonzero(valid):
        rivals = keep & (groups == groups[i])
        keep[i] = not (overlaps[i, rivals] > threshold).any()
    return keep


@st.composite
def problems(draw):
    """Clusters of boxes on a coarse grid, so that some touch, coincide or are empty."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corner = rng.integers(0, draw(st.integers(1, 12)), size=(COUNT, 2))
    sides = rng.integers(0, draw(st.integers(1, 9)), size=(COUNT, 2))
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    groups = rng.integers(0, draw(st.integers(1, 4)), size=COUNT)
    valid = rng.uniform(size=COUNT) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return boxes, draw(st.sampled_from([0.0, 0.3, 0.5, 0.7])), valid, groups.astype(np.int32)


@given(problems())
def test_what_stays_is_what_the_greedy_algorithm_keeps(problem):
    boxes, threshold, valid, groups = problem
    found = run(boxes, threshold=threshold, valid=valid, groups=groups)
    expected = greedy(np.asarray(overlaps_of(boxes, boxes)), threshold, valid, groups)
    np.testing.assert_array_equal(found, expected)


def test_a_chain_is_settled_link_by_link():
    """Each box overlaps its neighbours alone: the greedy algorithm keeps every other one."""
    start = np.arange(COUNT, dtype=np.float32)
    zero = np.zeros_like(start)
    boxes = np.stack([start, zero, start + 2, zero + 1], axis=1)
    found = run(boxes, threshold=0.3, valid=np.ones(COUNT, bool))
    np.testing.assert_array_equal(found, start % 2 == 0)


def test_several_images_at_once_are_each_their_own_torchs():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, size=(3, 200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, size=corner.shape)], axis=-1)
    boxes = boxes.astype(np.float32)
    valid = np.ones((3, 200), bool)
    found = jax.jit(jax.vmap(lambda b, v: nms(b, threshold=0.5, valid=v)))(boxes, valid)
    scores = torch.arange(200, 0, -1)
    for own, keep in zip(boxes, found, strict=True):
        expected = regions.nms(torch.tensor(own), scores, 0.5)
        np.testing.assert_array_equal(np.flatnonzero(keep), expected)
