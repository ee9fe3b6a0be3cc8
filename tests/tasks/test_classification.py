import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.tasks import Classification
from flaxattn.tasks.task import Measured

IMAGE_SHAPE = (2, 2, 1)


def measured(num_classes, logits, labels):
    task = Classification(num_classes, IMAGE_SHAPE)
    return task.measure(logits, {"label": jnp.asarray(labels, jnp.int32)})


@given(smoothing=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_loss_is_torchs(smoothing, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(7, 11)).astype(np.float32), rng.integers(0, 11, 7)
    task = Classification(11, IMAGE_SHAPE, label_smoothing=smoothing)
    ours, logged = task.loss(jnp.asarray(logits), {"target": task.targets(jnp.asarray(labels))})
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
    )
    assert float(ours) == pytest.approx(float(theirs), rel=2e-5)
    assert float(logged["accuracy"]) == pytest.approx(np.mean(logits.argmax(-1) == labels))


def test_what_is_measured_of_each_example():
    logits = jnp.asarray([[9.0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])
    sums, records = measured(7, logits, [0, 6, 5])
    assert sums["accuracy"].tolist() == [1, 1, 0]
    assert sums["top5"].tolist() == [1, 1, 0]
    assert sums["loss"].shape == (3,)
    assert records == {}


def test_equal_logits_are_one_guess():
    sums, _ = measured(10, jnp.zeros((10, 10)), range(10))
    assert float(sums["accuracy"].sum()) == 1


def test_top5_needs_more_than_five_classes():
    assert "top5" not in measured(5, jnp.zeros((1, 5)), [0]).sums


def test_metrics_are_means_and_the_headline_a_sentence():
    total = Measured({"loss": np.float64(3.5), "accuracy": np.float64(6)}, records={})
    metrics = Classification(5, IMAGE_SHAPE).finish(total, 7)
    assert metrics == {"loss": 0.5, "accuracy": 6 / 7}
    sentence = Classification.sentence(metrics | {"count": 7})
    assert sentence == "accuracy: 0.8571 (6 of 7)"
    assert Classification.headline in metrics


def test_prediction_is_a_distribution_in_float32():
    task = Classification(3, IMAGE_SHAPE)
    probabilities = task.predict(jnp.asarray([[1.0, 2, 3]], jnp.bfloat16))
    assert probabilities.dtype == jnp.float32
    assert float(probabilities.sum()) == pytest.approx(1)
