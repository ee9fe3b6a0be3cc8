"""Which boxes are trained on: matches against torchvision's, and random samples of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.models.detection.targets import match, sample, smooth_l1
from tests.torch_reference.torchvision_shim import torchvision

COUNT, SHARE = 16, 0.25


@pytest.mark.parametrize("low_quality", [False, True])
def test_matches_are_torchvisions(low_quality):
    """On a grid, where objects have several best boxes; and with padding, which has none."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 12, size=(300, 2))
    boxes = np.concatenate([corner, corner + rng.integers(2, 9, size=(300, 2))], 1).astype(float)
    objects = boxes[:6] + rng.integers(-2, 3, size=(6, 4))
    objects[:, 2:] = np.maximum(objects[:, 2:], objects[:, :2] + 1)
    fields = {"foreground": 0.7, "background": 0.3, "low_quality": low_quality}
    padded = np.concatenate([objects, np.zeros((3, 4))])
    found = jax.jit(lambda *arrays: match(*arrays, **fields))(boxes, padded, np.arange(9) < 6)

    matcher = torchvision.models.detection._utils.Matcher(0.7, 0.3, low_quality)
    overlaps = torchvision.ops.box_iou(torch.tensor(objects), torch.tensor(boxes)).float()
    expected = matcher(overlaps).numpy()
    np.testing.assert_array_equal(found.positive, expected >= 0)
    np.testing.assert_array_equal(found.negative, expected == -1)
    np.testing.assert_array_equal(found.nearest[expected >= 0], expected[expected >= 0])
    assert {-2, -1} < {*expected}


def test_without_objects_all_is_background_and_an_untouched_object_has_no_box():
    boxes = np.array([[0, 0, 4, 4], [2, 2, 9, 9]], np.float32)
    far = np.array([[50, 50, 60, 60]], np.float32)
    for valid in (False, True):
        fields = {"foreground": 0.7, "background": 0.3, "low_quality": True}
        found = match(jnp.array(boxes), jnp.array(far), jnp.array([valid]), **fields)
        assert not found.positive.any()
        assert found.negative.all()


draw_sample = jax.jit(
    lambda key, positive, negative: sample(
        key, positive, negative, count=COUNT, positive_share=SHARE, draw=jax.random.uniform
    )
)


@given(
    seed=st.integers(0, 2**32 - 1),
    positives=st.integers(0, 30),
    negatives=st.integers(0, 10),
)
def test_a_sample_has_as_many_of_each_as_there_may_be(seed, positives, negatives):
    kinds = np.zeros(40, int)
    kinds[:positives], kinds[positives : positives + negatives] = 1, -1
    kinds = np.random.default_rng(seed).permutation(kinds)
    found = draw_sample(jax.random.key(seed), kinds == 1, kinds == -1)
    chosen = np.asarray(found.chosen)[found.valid]
    assert len({*chosen}) == len(chosen)
    expected = min(positives, int(COUNT * SHARE))
    assert found.positive.sum() == (kinds[chosen] == 1).sum() == expected
    assert (kinds[chosen] == -1).sum() == min(negatives, COUNT - expected)
    np.testing.assert_array_equal(np.asarray(found.positive)[found.valid], kinds[chosen] == 1)
    assert not np.asarray(found.positive)[~np.asarray(found.valid)].any()


def test_every_box_is_as_likely_and_fewer_boxes_than_samples_are_all_taken():
    positive = np.arange(8) < 4
    keys = jax.random.split(jax.random.key(0), 2000)

    def chosen(key):
        found = sample(
            key, positive, ~positive, count=4, positive_share=0.5, draw=jax.random.uniform
        )
        return jnp.zeros(8, jnp.int32).at[found.chosen].add(1)

    counts = jax.jit(lambda keys: jax.vmap(chosen)(keys).sum(axis=0))(keys)
    np.testing.assert_allclose(counts / len(keys), 0.5, atol=0.05)
    found = draw_sample(jax.random.key(0), positive, ~positive)
    assert sorted(np.asarray(found.chosen)[found.valid]) == [*range(8)]


def test_smooth_l1_is_torchs():
    x, y = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32) / 5
    expected = torch.nn.functional.smooth_l1_loss(
        torch.tensor(x), torch.tensor(y), beta=1 / 9, reduction="none"
    )
    np.testing.assert_allclose(smooth_l1(x, y), expected.sum(dim=1), rtol=1e-5)
