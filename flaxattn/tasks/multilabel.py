"""Any number of classes an image."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flaxattn.errors import InputError
from flaxattn.tasks.labelled_images import LabelledImages
from flaxattn.tasks.task import Batch, Measured


@dataclasses.dataclass(frozen=True)
class MultiLabel(LabelledImages):
    """K yes-or-no questions about an image: logits (N, K), labels (N, K) of 0 and 1.

    Smoothing s makes the targets s / 2 and 1 - s / 2.
    """

    annotation: ClassVar[str] = "classes"
    headline: ClassVar[str] = "mAP"
    logged: ClassVar[tuple[str, ...]] = ("exact_match",)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (self.num_classes,)

    def targets(self, labels: Array) -> Array:
        """Labels (N, K) as smoothed targets, float32."""
        return labels.astype(jnp.float32) * (1 - self.label_smoothing) + self.label_smoothing / 2

    def loss(self, outputs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Mean binary cross-entropy in nats, and the share of images with all answers right."""
        loss = jnp.mean(binary_cross_entropy(outputs, batch["target"]))
        right = _all_right(outputs, batch["target"] > 0.5)
        return loss, {"exact_match": jnp.mean(right, dtype=loss.dtype)}

    def measure(self, outputs: Array, batch: Batch) -> Measured:
        """Plain binary cross-entropy and exact matches to add up; the scores and labels."""
        labels = batch["label"] > 0
        sums = {
            "loss": binary_cross_entropy(outputs, labels),
            "exact_match": _all_right(outputs, labels).astype(jnp.float32),
        }
        return Measured(sums, records={"score": outputs, "label": labels})

    def finish(self, total: Measured, count: int) -> dict[str, float]:
        """The means, and the mean average precision of the classes that any image has."""
        precisions = average_precisions(total.records["score"], total.records["label"])
        if np.isnan(precisions).all():
            raise InputError(
                "no test image has any class, so there is no average precision: use a split with "
                "labels."
            )
        means = {name: float(value) / count for name, value in total.sums.items()}
        return means | {"mAP": float(np.nanmean(precisions))}

    @staticmethod
    def sentence(metrics: Mapping[str, float]) -> str:
        return f"mAP: {metrics['mAP']:.4f} ({metrics['count']} images)"

    def predict(self, outputs: Array) -> Array:
        """The probability of each class (N, K), float32."""
        return jax.nn.sigmoid(outputs.astype(jnp.float32))

    def classes_in(self, label: np.ndarray) -> np.ndarray:
        return np.flatnonzero(label)

    def classes_found(self, probabilities: np.ndarray) -> np.ndarray:
        return np.flatnonzero(probabilities > 0.5)


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Of each example, the mean over its classes: logits and targets (N, K) -> (N,), in nats."""
    return jnp.mean(jax.nn.softplus(logits) - targets.astype(logits.dtype) * logits, axis=-1)


def _all_right(logits: Array, labels: Array) -> Array:
    return jnp.all((logits > 0) == labels, axis=-1)


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The average precision of each class, float64: scores (N, K), labels (N, K) bool -> (K,).

    AP = sum over the positives of the precision among the examples with at least their score,
    divided by the number of positives: no interpolation. Examples of one score come together,
    whatever their order, as in scikit-learn's average_precision_score. NaN for a class without a
    positive.
    """
    order = np.argsort(-scores, axis=0)
    scores, labels = (np.take_along_axis(x, order, axis=0) for x in (scores, labels))
    ranks = np.arange(len(scores))[:, None]
    precisions = np.cumsum(labels, axis=0, dtype=np.float64) / (ranks + 1)
    # Of each example, the rank of the last one that has its score.
    ends = np.where(np.diff(scores, axis=0, append=np.nan) != 0, ranks, len(scores))
    last = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    found = np.sum(np.take_along_axis(precisions, last, axis=0), axis=0, where=labels)
    positives = labels.sum(axis=0)
    return np.divide(found, positives, out=np.full(len(found), np.nan), where=positives > 0)
