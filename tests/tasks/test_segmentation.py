import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.errors import InputError
from flaxattn.tasks import Segmentation
from flaxattn.tasks.task import Measured, abstract_batch
from flaxattn.train.config import base_config

TASK = Segmentation(3, (4, 5, 1))


def draw(seed, ignored=0.3):
    """Logits of a batch of two, and labels of which some do not count."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 4, 5)).astype(np.int32)
    return logits, np.where(rng.random(labels.shape) < ignored, 255, labels).astype(np.int32)


def by_hand(logits, labels):
    """The mean loss and accuracy, pixel by pixel."""
    losses, hits = [], []
    for scores, label in zip(logits.reshape(-1, 3).astype(np.float64), labels.ravel(), strict=True):
        if label != 255:
            losses.append(np.log(np.exp(scores).sum()) - scores[label])
            hits.append(scores.argmax() == label)
    return np.mean(losses), np.mean(hits)


@given(seed=st.integers(0, 1000))
def test_the_loss_is_the_mean_over_the_pixels_that_count(seed):
    """Over those of the batch: an image of few pixels counts less."""
    logits, labels = draw(seed)
    labels[1, 1:] = 255
    labels[0, 0, 0] = 1
    loss, logged = TASK.loss({"out": jnp.asarray(logits)}, {"label": jnp.asarray(labels)})
    expected, accuracy = by_hand(logits, labels)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(logged["accuracy"]) == pytest.approx(accuracy)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels).long(), ignore_index=255
    )
    assert float(loss) == pytest.approx(float(theirs), rel=1e-5)


def test_what_does_not_count_has_no_gradient():
    logits, labels = draw(0)

    def loss(logits):
        return TASK.loss({"out": logits}, {"label": jnp.asarray(labels)})[0]

    gradient = np.abs(np.asarray(jax.grad(loss)(jnp.asarray(logits)))).max(axis=-1)
    np.testing.assert_array_equal(gradient > 0, labels != 255)
    labels[:] = 255
    assert float(loss(jnp.asarray(logits))) == 0


def test_the_losses_of_all_outputs_are_added():
    """Half of the auxiliary head's; of DANet's branches all, as its authors do."""
    (out, labels), (other, _) = draw(1), draw(2)
    batch = {"label": jnp.asarray(labels)}
    one, two = by_hand(out, labels)[0], by_hand(other, labels)[0]
    for task, name, weight in (
        (TASK, "aux", 0.5),
        (Segmentation(3, (4, 5, 1), aux_weight=0.4), "aux", 0.4),
        (TASK, "position", 1),
    ):
        loss, logged = task.loss({"out": jnp.asarray(out), name: jnp.asarray(other)}, batch)
        assert float(loss) == pytest.approx(one + weight * two, rel=1e-5)
        assert float(logged["accuracy"]) == pytest.approx(by_hand(out, labels)[1])


def test_metrics_by_hand():
    """Two classes overlap by 2 of 4 and 1 of 3 pixels, and the third is nowhere."""
    labels = np.array([[[0, 0, 0, 255]], [[1, 1, 255, 255]]], np.int32)
    guesses = np.array([[[0, 0, 1, 2]], [[1, 0, 2, 2]]], np.int32)
    logits = 9 * jax.nn.one_hot(guesses, 3)
    np.testing.assert_array_equal(TASK.predict(logits), guesses)
    measured = TASK.measure(logits, {"label": jnp.asarray(labels)})
    assert measured.sums["confusion"].shape == (2, 3, 3)
    assert measured.records == {}
    total = Measured(jax.tree.map(lambda x: np.asarray(x).sum(0), measured.sums), records={})
    metrics = TASK.finish(total, 2)
    right = np.log(1 + 2 * np.exp(-9))
    expected = {
        "loss": (3 * right + 2 * (right + 9)) / 5,
        "accuracy": 3 / 5,
        "mIoU": (2 / 4 + 1 / 3) / 2,
        "IoU_0": 2 / 4,
        "IoU_1": 1 / 3,
    }
    assert metrics == pytest.approx(expected)
    assert TASK.sentence({"mIoU": 0.51239, "count": 2}) == "mIoU: 0.5124 (2 images)"
    assert TASK.headline in metrics


def test_without_a_pixel_there_is_no_metric():
    empty = Measured({"confusion": np.zeros((3, 3)), "loss": np.float64(0)}, records={})
    with pytest.raises(InputError, match="no pixel of the test images has a class"):
        TASK.finish(empty, 2)


def test_of_a_config():
    config = base_config()
    config.data.image_size, config.aux_weight = 33, 0.4
    task = Segmentation.of(config, num_classes=21)
    assert task == Segmentation(21, (33, 33, 3), aux_weight=0.4)
    assert abstract_batch(task, 2) == {
        "image": jax.ShapeDtypeStruct((2, 33, 33, 3), np.float32),
        "label": jax.ShapeDtypeStruct((2, 33, 33), np.int32),
    }
    config.cutmix_alpha = 1.0
    with pytest.raises(InputError, match=r"cutmix_alpha=1\.0 is for images with one label"):
        Segmentation.of(config, num_classes=21)
