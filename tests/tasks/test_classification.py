import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.tasks import Classification


@given(smoothing=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_loss_is_torchs(smoothing, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(7, 11)).astype(np.float32), rng.integers(0, 11, 7)
    task = Classification(11, label_smoothing=smoothing)
    ours = task.loss(jnp.asarray(logits), task.targets(jnp.asarray(labels)))
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing, reduction="none"
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=1e-6)


def test_metrics_of_each_example():
    logits = jnp.asarray([[9.0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])
    found = Classification(7).metrics(logits, jnp.asarray([0, 6, 5]))
    assert found["accuracy"].tolist() == [1, 1, 0]
    assert found["top5"].tolist() == [1, 1, 0]
    assert found["loss"].shape == (3,)


def test_equal_logits_are_one_guess():
    found = Classification(10).metrics(jnp.zeros((10, 10)), jnp.arange(10))
    assert float(found["accuracy"].sum()) == 1


def test_top5_needs_more_than_five_classes():
    assert "top5" not in Classification(5).metrics(jnp.zeros((1, 5)), jnp.zeros(1, jnp.int32))


def test_prediction_is_a_distribution_in_float32():
    probabilities = Classification(3).predict(jnp.asarray([[1.0, 2, 3]], jnp.bfloat16))
    assert probabilities.dtype == jnp.float32
    assert float(probabilities.sum()) == pytest.approx(1)
