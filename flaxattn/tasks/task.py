"""What training, evaluation and the reports ask of a task: one protocol."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.errors import InputError

Batch = dict[str, Array]


class Measured(NamedTuple):
    """What an evaluation finds.

    In a task's `measure` every array has a leading axis of examples, padding included: the step
    masks the padding, so a task need not look at it. In its `finish` the arrays are NumPy's, of all
    test examples.

    Fields:
        sums: a pytree that is added up over the examples, in float64 over the batches.
        records: a pytree whose rows are kept, in the order of the data: for metrics that are no
            function of sums. Where an example has a varying number of findings, pad them to one
            shape and say which are real.
    """

    sums: Any
    records: Any


class Task(Protocol):
    """What a network is trained for.

    Fields:
        annotation: what of each record it learns, as `flaxattn.data.open_source` knows it.
        headline: the metric by which runs are compared; larger is better.
        logged: the names of the values that `loss` returns beside the loss.
    """

    annotation: ClassVar[str]
    headline: ClassVar[str]
    logged: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, config: Any, *, num_classes: int) -> Self:
        """The task of an experiment's config, for data with `num_classes` classes."""

    def model(
        self, fields: Mapping[str, Any], *, dtype: DTypeLike, param_dtype: DTypeLike
    ) -> nn.Module:
        """The network for these data, of the config's `model` fields."""

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One training example as the data make it: names, shapes, and dtypes.

        All training examples have one shape, and so have all test examples, whose images may be of
        another size. What varies in number is padded, and a name of its own says what is real.
        """

    def inputs(self, batch: Any) -> tuple:
        """The positional arguments of the model. `batch` may also be abstract arrays."""

    def prepare(self, key: Array, batch: Batch) -> Batch:
        """A training batch as `loss` takes it, mixed or augmented on the device."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """The mean loss of a prepared batch, and the values to log, named as in `logged`."""

    def measure(self, outputs: Any, batch: Batch) -> Measured:
        """What evaluation needs of each example of a batch that is not prepared."""

    def finish(self, total: Measured, count: int) -> dict[str, float]:
        """The metrics of `count` test examples, on the host."""

    @staticmethod
    def sentence(metrics: Mapping[str, float]) -> str:
        """The headline in words, of the metrics and their `count`."""

    def predict(self, outputs: Any) -> Any:
        """What the outputs mean to a person who asks: a pytree with a leading axis of examples."""

    def draw(
        self,
        image: np.ndarray,
        example: Mapping[str, np.ndarray],
        found: Any,
        class_names: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """A test image, uint8 (H, W, 3), with what is true in it, and with what was found.

        Args:
            image: the example's own image as pixels.
            example: one row of a test batch.
            found: the same row of `predict`.
        """


def require_unmixed(config: Any) -> None:
    """InputError for a config that mixes images or smooths labels, for tasks that have neither."""
    for name in ("label_smoothing", "mixup_alpha", "cutmix_alpha"):
        if config[name]:
            raise InputError(
                f"{name}={config[name]} is for images with one label or several: use 0 for "
                f"{config.task}."
            )


def abstract_batch(task: Task, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """`size` training examples of the task, without values."""
    return {
        name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for name, x in task.example.items()
    }


def add_up(batches: Sequence[tuple[Measured, np.ndarray]]) -> tuple[Measured, int]:
    """The total of measured batches with their masks, and the number of examples.

    The sums are added without rounding, and the padding's records are dropped.
    """
    kept = [mask > 0 for _, mask in batches]
    sums, records = zip(*(measured for measured, _ in batches), strict=True)

    def added(*parts: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(math.fsum, 0, np.stack(parts))

    def joined(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([part[rows] for part, rows in zip(parts, kept, strict=True)])

    total = Measured(jax.tree.map(added, *sums), jax.tree.map(joined, *records))
    return total, sum(int(rows.sum()) for rows in kept)
