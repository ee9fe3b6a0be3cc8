"""Which class each pixel has and which it was given, and the overlap of the two."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def confusion_matrices(labels: Array, guesses: Array, *, num_classes: int) -> Array:
    """Of each image, how many pixels of class i were given class j: (N, H, W) twice to (N, K, K).

    Counts are int32, exact up to 2^31 pixels of a batch. A pixel whose label is not among the
    classes, such as 255, counts nowhere.
    """

    def of_image(label: Array, guess: Array) -> Array:
        known = (label >= 0) & (label < num_classes)
        pair = jnp.where(known, label * num_classes + guess, num_classes**2)
        return jnp.bincount(pair.ravel(), length=num_classes**2 + 1)[:-1].astype(jnp.int32)

    counts = jax.vmap(of_image)(labels, guesses)
    return counts.reshape(-1, num_classes, num_classes)


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Of each class, the pixels rightly given it over those that have it or were given it.

    (K, K) counts of a whole set to float64 (K,), NaN for a class that no pixel has or was given:
    leave it out of the mean.
    """
    confusion = np.asarray(confusion, np.float64)
    shared = np.diagonal(confusion)
    whole = confusion.sum(axis=0) + confusion.sum(axis=1) - shared
    return np.divide(shared, whole, out=np.full(len(whole), np.nan), where=whole > 0)
