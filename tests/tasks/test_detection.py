"""Detection's labels on their way into the network and back, its loss and its metric."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import InputError
from flaxattn.models.detection import Detections, Ratio
from flaxattn.tasks import Detection
from flaxattn.tasks.detection import LOSSES
from flaxattn.tasks.task import Measured
from flaxattn.train.config import base_config

TASK = Detection(3, (64, 64, 3), 2)
BATCH = {
    "image": jnp.zeros((2, 64, 64, 3)),
    "size": jnp.full((2, 2), 64),
    "boxes": jnp.array([[[1.0, 2, 30, 40], [5, 5, 20, 20]], [[0, 0, 9, 9], [0, 0, 0, 0]]]),
    "labels": jnp.array([[0, 2], [1, 0]]),
    "valid": jnp.array([[True, True], [True, False]]),
    "difficult": jnp.zeros((2, 2), bool),
    "image_id": jnp.array([7, 8]),
}


def found(labels):
    """Every box of the batch, of these classes as the network counts them."""
    scores = jnp.where(BATCH["valid"], jnp.array([[0.9, 0.8], [0.7, 0.0]]), 0)
    return Detections(BATCH["boxes"], scores, labels, BATCH["valid"])


def finished(outputs):
    measured = TASK.measure(outputs, BATCH)
    records = {
        name: {field: np.asarray(x) for field, x in part.items()}
        for name, part in measured.records.items()
    }
    return TASK.finish(Measured({}, records), 2)


def test_the_network_counts_classes_from_one_and_the_data_from_zero():
    prepared = TASK.prepare(None, BATCH)
    _, _, targets = TASK.inputs(prepared)
    np.testing.assert_array_equal(targets.labels[0], [1, 3])
    assert finished(found(targets.labels)) == {"mAP": 1.0}
    assert finished(found(BATCH["labels"]))["mAP"] < 0.5
    np.testing.assert_array_equal(TASK.predict(found(targets.labels)).labels[0], [0, 2])


def test_the_loss_is_the_sum_of_four_means():
    outputs = {name: Ratio(jnp.asarray(i + 1.0), jnp.asarray(2.0)) for i, name in enumerate(LOSSES)}
    loss, parts = TASK.loss(outputs, BATCH)
    assert float(loss) == 5.0
    assert [float(parts[name]) for name in TASK.logged] == [0.5, 1.0, 1.5, 2.0]


def test_data_without_objects_are_refused():
    records = {
        "found": {k: np.asarray(v) for k, v in found(BATCH["labels"])._asdict().items()},
        "truth": {
            name: np.asarray(BATCH[name]) for name in ("boxes", "labels", "valid", "difficult")
        },
    }
    records["truth"]["valid"] = np.zeros((2, 2), bool)
    with pytest.raises(InputError, match="no test image has an object that counts"):
        TASK.finish(Measured({}, records), 2)


def test_a_config_that_mixes_images_is_refused():
    config = base_config()
    config.task, config.mixup_alpha = "detection", 0.2
    with pytest.raises(InputError, match=r"mixup_alpha=0\.2 .*: use 0 for detection"):
        Detection.of(config, num_classes=3)
