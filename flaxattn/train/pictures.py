"""What a network finds in the first test images, drawn below what is there."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flaxattn.data import Batch, Source
from flaxattn.images.drawing import table, with_caption
from flaxattn.images.preprocessing import pixels_of
from flaxattn.tasks.task import Task

_TITLE = (16, 40)  # pixels of the column that says which row is which


def draw(
    task: Task, batch: Batch, predictions: Any, source: Source, config: Mapping[str, Any]
) -> np.ndarray:
    """uint8 (H, W, 3): a column for each example of the batch that was predicted.

    Args:
        batch: this process's rows, the first of the test set.
        predictions: of its first rows, as the task's `predict` returns them.
        config: `mean` and `std`.
    """
    count = min(len(jax.tree.leaves(predictions)[0]), len(batch["mask"]))
    truths, finds = [title("true")], [title("found")]
    for row in range(count):
        if not batch["mask"][row]:
            continue
        example = {name: values[row] for name, values in batch.items()}
        image = pixels_of(example["image"], mean=config["mean"], std=config["std"])
        image = np.broadcast_to(image, (*image.shape[:2], 3))
        found = jax.tree.map(lambda values, row=row: values[row], predictions)
        true, likely = task.draw(image, example, found, source.class_names)
        truths.append(true)
        finds.append(likely)
    return table([truths, finds])


def title(text: str) -> np.ndarray:
    """A picture of a word."""
    return with_caption(np.full((*_TITLE, 3), 255, np.uint8), text)
