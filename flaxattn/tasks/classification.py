"""One class an image."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class Classification:
    """Softmax classification into `num_classes`.

    Fields:
        num_classes: K.
        label_smoothing: the share of each target that is spread evenly over all classes
            (Szegedy et al. 2016, arXiv:1512.00567, Section 7).
    """

    num_classes: int
    label_smoothing: float = 0.0

    def targets(self, labels: Array) -> Array:
        """Labels (N,) as smoothed one-hot targets (N, K), float32."""
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=jnp.float32)
        return one_hot * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def loss(self, logits: Array, targets: Array) -> Array:
        """Cross-entropy of each example: logits and targets (N, K) -> (N,), in nats."""
        return -jnp.sum(targets.astype(logits.dtype) * jax.nn.log_softmax(logits), axis=-1)

    def metrics(self, logits: Array, labels: Array) -> dict[str, Array]:
        """Per example (N,): plain cross-entropy, and whether the best one and five classes hit.

        top5 is left out where there are at most five classes.
        """
        of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        better = jnp.sum(logits > of_label, axis=-1)
        hard = jax.nn.one_hot(labels, self.num_classes, dtype=logits.dtype)
        guesses = jnp.argmax(logits, axis=-1).astype(labels.dtype)
        # Argmax, not `better == 0`: logits that are all equal are one guess, not a hit each.
        found = {
            "loss": self.loss(logits, hard),
            "accuracy": (guesses == labels).astype(jnp.float32),
        }
        if self.num_classes > 5:
            found["top5"] = (better < 5).astype(jnp.float32)
        return found

    def predict(self, logits: Array) -> Array:
        """Class probabilities (N, K), float32."""
        return jax.nn.softmax(logits.astype(jnp.float32))
