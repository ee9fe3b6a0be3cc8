import jax
import numpy as np
import pytest

from flaxattn.tasks import Classification, MultiLabel
from flaxattn.tasks.task import Measured, abstract_batch, add_up


def test_batches_add_up_without_rounding_and_without_padding():
    """A confusion matrix of two batches, records of two shapes, and a sum that float32 rounds."""
    first = Measured(
        {"confusion": np.asarray([[2, 0], [1, 3]]), "loss": np.float32(2**24)},
        {"boxes": np.arange(12.0).reshape(3, 2, 2), "scores": np.asarray([1.0, 2.0, 3.0])},
    )
    second = Measured(
        {"confusion": np.asarray([[0, 5], [0, 1]]), "loss": np.float32(1)},
        {"boxes": np.full((3, 2, 2), np.nan), "scores": np.asarray([4.0, np.nan, np.nan])},
    )
    masks = np.asarray([[1, 1, 1], [1, 0, 0]], np.float32)
    total, count = add_up([(first, masks[0]), (second, masks[1])])
    assert count == 4
    assert total.sums["confusion"].tolist() == [[2, 5], [1, 4]]
    assert float(total.sums["loss"]) == 2**24 + 1
    assert total.records["scores"].tolist() == [1, 2, 3, 4]
    assert total.records["boxes"].shape == (4, 2, 2)
    np.testing.assert_array_equal(total.records["boxes"][:3], first.records["boxes"])


@pytest.mark.parametrize(("task", "label_shape"), [(Classification, ()), (MultiLabel, (10,))])
def test_a_batch_is_examples_without_values(task, label_shape):
    batch = abstract_batch(task(10, (8, 6, 3)), 4)
    assert batch == {
        "image": jax.ShapeDtypeStruct((4, 8, 6, 3), np.float32),
        "label": jax.ShapeDtypeStruct((4, *label_shape), np.int32),
    }
