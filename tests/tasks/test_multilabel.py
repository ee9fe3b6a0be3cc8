import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from flaxattn.errors import InputError
from flaxattn.tasks import MultiLabel
from flaxattn.tasks.multilabel import average_precisions
from flaxattn.tasks.task import Measured

IMAGE_SHAPE = (2, 2, 1)


def drawn(seed, *, count=9, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, classes)).astype(np.int32)
    return rng.normal(size=(count, classes)).astype(np.float32), labels


@given(smoothing=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_loss_is_torchs(smoothing, seed):
    logits, labels = drawn(seed)
    task = MultiLabel(4, IMAGE_SHAPE, label_smoothing=smoothing)
    ours, logged = task.loss(jnp.asarray(logits), {"target": task.targets(jnp.asarray(labels))})
    smoothed = torch.tensor(labels) * (1 - smoothing) + 0.5 * smoothing
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), smoothed)
    assert float(ours) == pytest.approx(float(theirs), rel=2e-5)
    matches = np.all((logits > 0) == (labels > 0), axis=-1)
    assert float(logged["exact_match"]) == pytest.approx(matches.mean())


def test_loss_of_large_logits_is_finite():
    task = MultiLabel(1, IMAGE_SHAPE)
    loss, _ = task.loss(jnp.asarray([[1e4], [-1e4]]), {"target": jnp.ones((2, 2, 1))})
    assert float(loss) == pytest.approx(5e3)


def test_what_is_not_known_counts_nowhere():
    """Neither in the loss and its gradient nor in the metrics, whatever its logit is."""
    logits, labels = drawn(0)
    task = MultiLabel(4, IMAGE_SHAPE)
    unclear = labels.copy()
    unclear[:, 1], unclear[2:5, 3] = 255, -1
    known = (unclear == 0) | (unclear == 1)

    def loss_of(logits):
        return task.loss(logits, {"target": task.targets(jnp.asarray(unclear))})[0]

    loss, gradient = jax.value_and_grad(loss_of)(jnp.asarray(logits))
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(labels).float(), reduction="none"
    ).numpy()
    assert float(loss) == pytest.approx(np.where(known, each, 0).mean(), rel=2e-5)
    np.testing.assert_array_equal(np.asarray(gradient) != 0, known)

    other = np.where(known, logits, -logits)
    measured = [
        task.measure(jnp.asarray(x), {"label": jnp.asarray(unclear)}) for x in (logits, other)
    ]
    precisions = [average_precisions(**jax.device_get(m.records)) for m in measured]
    jax.tree.map(np.testing.assert_array_equal, measured[0].sums, measured[1].sums)
    np.testing.assert_array_equal(*precisions)
    assert np.isnan(precisions[0][1])


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.4, 0.0), (0.0, 1.0)])
def test_a_mixed_picture_has_a_share_of_the_labels_of_both(mixup_alpha, cutmix_alpha):
    task = MultiLabel(2, (8, 8, 1), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    labels = jnp.asarray([[1, 0], [1, 1]], jnp.int32)
    images = jnp.broadcast_to(jnp.asarray([0.0, 1.0]).reshape(2, 1, 1, 1), (2, 8, 8, 1))
    batch = task.prepare(jax.random.key(3), {"image": images, "label": labels})
    share = batch["image"][0].mean()
    assert 0 < float(share) < 1
    targets, weights = batch["target"].swapaxes(0, 1)
    np.testing.assert_allclose(targets, [[1, share], [1, 1 - share]], rtol=1e-6)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


# Scores in quarters tie often; a column may be all 0 or all 1.
@given(
    scores=st.lists(st.tuples(*[st.integers(-4, 4)] * 3), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_average_precision_is_scikit_learns_ties_included(scores, seed):
    scores = np.asarray(scores, np.float32) / 4
    rng = np.random.default_rng(seed)
    labels = rng.random(scores.shape) < rng.choice([0, 0.1, 0.5, 1], 3)
    known = rng.random(scores.shape) < 0.8
    found = average_precisions(scores, labels, known)
    for k in range(3):
        of_class = labels[known[:, k], k], scores[known[:, k], k]
        if of_class[0].any():
            assert found[k] == pytest.approx(average_precision_score(*of_class))
        else:
            assert np.isnan(found[k])


def test_average_precision_by_hand():
    """Positives at ranks 1 and 3; then all scores equal; then at the end of a tie of two."""
    scores = np.asarray([[4.0, 1, 9], [3, 1, 5], [2, 1, 5], [1, 1, 0]])
    labels = np.asarray([[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    found = average_precisions(scores, labels, np.full((4, 3), True))
    np.testing.assert_allclose(found, [(1 + 2 / 3) / 2, 1 / 4, 1 / 3])


def test_metrics_are_means_and_the_mean_average_precision():
    task = MultiLabel(3, IMAGE_SHAPE)
    records = {
        "score": np.asarray([[2.0, 1, 0], [1, 2, 0]], np.float32),
        "label": np.asarray([[True, True, False], [False, False, False]]),
        "known": np.full((2, 3), True),
    }
    sums = {"loss": np.float64(0.5), "exact_match": np.float64(1)}
    metrics = task.finish(Measured(sums, records), 2)
    assert metrics == {"loss": 0.25, "exact_match": 0.5, "mAP": 0.75}
    assert MultiLabel.sentence(metrics | {"count": 2}) == "mAP: 0.7500 (2 images)"
    assert MultiLabel.headline in metrics


def test_images_without_any_class_have_no_average_precision():
    nothing = np.zeros((2, 3), bool)
    records = {"score": np.zeros((2, 3), np.float32), "label": nothing, "known": ~nothing}
    with pytest.raises(InputError, match="no test image has any class"):
        MultiLabel(3, IMAGE_SHAPE).finish(Measured({}, records), 2)


def test_prediction_is_a_probability_for_each_class():
    probabilities = MultiLabel(2, IMAGE_SHAPE).predict(jnp.asarray([[0.0, 20.0]], jnp.bfloat16))
    assert probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities, [[0.5, 1]], rtol=1e-6)
