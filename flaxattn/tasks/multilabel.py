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

    Other labels, such as 255, are questions without an answer: they count nowhere, as difficult
    objects in VOC's evaluation. Smoothing s makes the targets s / 2 and 1 - s / 2.
    """

    annotation: ClassVar[str] = "classes"
    headline: ClassVar[str] = "mAP"
    logged: ClassVar[tuple[str, ...]] = ("exact_match",)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (self.num_classes,)

    def targets(self, labels: Array) -> Array:
        """float32 (N, 2, K) of labels (N, K): smoothed targets, and weights.

        Both are 0 where the answer is not known, so that they can be mixed.
        """
        known = _known(labels).astype(jnp.float32)
        targets = labels.astype(jnp.float32) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return jnp.stack([known * targets, known], axis=1)

    def loss(self, outputs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Mean binary cross-entropy in nats, and the share of images with all answers right."""
        targets, weights = jnp.unstack(batch["target"], axis=1)
        loss = jnp.mean(binary_cross_entropy(outputs, targets, weights))
        right = _all_right(outputs, targets > weights / 2, weights > 0)
        return loss, {"exact_match": jnp.mean(right, dtype=loss.dtype)}

    def measure(self, outputs: Array, batch: Batch) -> Measured:
        """Plain binary cross-entropy and exact matches to add up; the scores and labels."""
        labels, known = batch["label"] == 1, _known(batch["label"])
        sums = {
            "loss": binary_cross_entropy(outputs, labels, known),
            "exact_match": _all_right(outputs, labels, known).astype(jnp.float32),
        }
        return Measured(sums, records={"score": outputs, "label": labels, "known": known})

    def finish(self, total: Measured, count: int) -> dict[str, float]:
        """The means, and the mean average precision of the classes that any image has."""
        precisions = average_precisions(**total.records)
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
        return np.flatnonzero(label == 1)

    def classes_found(self, probabilities: np.ndarray) -> np.ndarray:
        return np.flatnonzero(probabilities > 0.5)


def binary_cross_entropy(logits: Array, targets: Array, weights: Array) -> Array:
    """Of each example, the sum over its classes divided by their number: (N, K) -> (N,), in nats.

    Targets are already times their weights, which are 0 for classes that do not count.
    """
    targets, weights = (x.astype(logits.dtype) for x in (targets, weights))
    return jnp.mean(weights * jax.nn.softplus(logits) - targets * logits, axis=-1)


def _known(labels: Array) -> Array:
    return (labels == 0) | (labels == 1)


def _all_right(logits: Array, labels: Array, known: Array) -> Array:
    return jnp.all(((logits > 0) == labels) | ~known, axis=-1)


def average_precisions(score: np.ndarray, label: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The average precision of each class, float64 (K,).

    Args:
        score: (N, K).
        label: bool (N, K).
        known: bool (N, K): examples that are not known count nowhere in this class.

    AP = sum over the positives of the precision among the examples with at least their score,
    divided by the number of positives: no interpolation. Examples of one score come together,
    whatever their order, as in scikit-learn's average_precision_score. NaN for a class without a
    positive.
    """
    # Behind all others, what is not known has no influence on them.
    scores, labels = np.where(known, score, -np.inf), label & known
    order = np.argsort(-scores, axis=0)
    scores, labels = (np.take_along_axis(x, order, axis=0) for x in (scores, labels))
    ranks = np.arange(len(scores))[:, None]
    precisions = np.cumsum(labels, axis=0, dtype=np.float64) / (ranks + 1)
    # Of each example, the rank of the last one that has its score.
    following = np.concatenate([scores[1:], np.full_like(scores[:1], np.nan)])
    ends = np.where(scores != following, ranks, len(scores))
    last = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    found = np.sum(np.take_along_axis(precisions, last, axis=0), axis=0, where=labels)
    positives = labels.sum(axis=0)
    return np.divide(found, positives, out=np.full(len(found), np.nan), where=positives > 0)
