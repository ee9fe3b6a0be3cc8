"""One class an image."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flaxattn.tasks.labelled_images import LabelledImages
from flaxattn.tasks.task import Batch, Measured


@dataclasses.dataclass(frozen=True)
class Classification(LabelledImages):
    """Softmax classification into K classes: logits (N, K), labels (N,).

    Smoothing spreads its share of each target evenly over all classes (Szegedy et al. 2016,
    arXiv:1512.00567, Section 7).
    """

    annotation: ClassVar[str] = "class"
    headline: ClassVar[str] = "accuracy"
    logged: ClassVar[tuple[str, ...]] = ("accuracy",)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return ()

    def targets(self, labels: Array) -> Array:
        """Labels (N,) as smoothed one-hot targets (N, K), float32."""
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=jnp.float32)
        return one_hot * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def loss(self, outputs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Mean cross-entropy in nats, and the share of the images whose likeliest class is hit."""
        loss = jnp.mean(cross_entropy(outputs, batch["target"]))
        hits = jnp.argmax(outputs, -1) == jnp.argmax(batch["target"], -1)
        return loss, {"accuracy": jnp.mean(hits, dtype=loss.dtype)}

    def measure(self, outputs: Array, batch: Batch) -> Measured:
        """Plain cross-entropy, and whether the best one and five classes hit.

        top5 is left out where there are at most five classes.
        """
        labels = batch["label"]
        of_label = jnp.take_along_axis(outputs, labels[:, None], axis=-1)
        better = jnp.sum(outputs > of_label, axis=-1)
        hard = jax.nn.one_hot(labels, self.num_classes, dtype=outputs.dtype)
        guesses = jnp.argmax(outputs, axis=-1).astype(labels.dtype)
        # Argmax, not `better == 0`: logits that are all equal are one guess, not a hit each.
        sums = {
            "loss": cross_entropy(outputs, hard),
            "accuracy": (guesses == labels).astype(jnp.float32),
        }
        if self.num_classes > 5:
            sums["top5"] = (better < 5).astype(jnp.float32)
        return Measured(sums, records={})

    def finish(self, total: Measured, count: int) -> dict[str, float]:
        return {name: float(value) / count for name, value in total.sums.items()}

    @staticmethod
    def sentence(metrics: Mapping[str, float]) -> str:
        hits = round(metrics["accuracy"] * metrics["count"])
        return f"accuracy: {metrics['accuracy']:.4f} ({hits} of {metrics['count']})"

    def predict(self, outputs: Array) -> Array:
        """Class probabilities (N, K), float32."""
        return jax.nn.softmax(outputs.astype(jnp.float32))

    def classes_in(self, label: np.ndarray) -> np.ndarray:
        return label.reshape(1)

    def classes_found(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax().reshape(1)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Of each example: logits and targets (N, K) -> (N,), in nats."""
    return -jnp.sum(targets.astype(logits.dtype) * jax.nn.log_softmax(logits), axis=-1)
