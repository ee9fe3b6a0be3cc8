"""One class a pixel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.errors import InputError
from flaxattn.images.drawing import PICTURE, fitted, with_classes
from flaxattn.models.segmentation import create_segmenter
from flaxattn.tasks.confusion import confusion_matrices, intersection_over_union
from flaxattn.tasks.task import Batch, Measured, require_unmixed


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Softmax classification of pixels into K classes: logits (N, H, W, K), labels (N, H, W).

    A pixel whose label is not among the classes, such as 255, counts nowhere. Training examples are
    windows of one size, test examples whole images on a canvas (`data.image_size`, `data.canvas`).

    Fields:
        num_classes: K, with the background.
        image_shape: (H, W, C) of a training window.
        aux_weight: of the loss of an auxiliary head: 0.5 in torchvision's recipe, 0.4 in PSANet's
            and CCNet's.

    `of` raises InputError for a config that mixes images or smooths labels.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    aux_weight: float = 0.5

    annotation: ClassVar[str] = "masks"
    headline: ClassVar[str] = "mIoU"
    logged: ClassVar[tuple[str, ...]] = ("accuracy",)

    @classmethod
    def of(cls, config: Any, *, num_classes: int) -> Self:
        require_unmixed(config)
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        return cls(num_classes, shape, aux_weight=config.aux_weight)

    def model(
        self, fields: Mapping[str, Any], *, dtype: DTypeLike, param_dtype: DTypeLike
    ) -> nn.Module:
        return create_segmenter(
            num_classes=self.num_classes, dtype=dtype, param_dtype=param_dtype, **fields
        )

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "image": jax.ShapeDtypeStruct(self.image_shape, jnp.float32),
            "label": jax.ShapeDtypeStruct(self.image_shape[:2], jnp.int32),
        }

    def inputs(self, batch: Any) -> tuple:
        return (batch["image"],)

    def prepare(self, key: Array, batch: Batch) -> Batch:
        return batch

    def loss(self, outputs: Mapping[str, Array], batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Cross-entropy in nats, and the share of the pixels whose likeliest class is right.

        Both are means over the pixels of the whole batch that count. The losses of all outputs are
        added, that of "aux" times `aux_weight`. Micro-batches have means of their own.
        """
        labels = batch["label"]
        known = _known(labels, self.num_classes)
        count = jnp.maximum(jnp.sum(known), 1)

        def mean(values: Array) -> Array:
            return jnp.sum(jnp.where(known, values, 0)) / count.astype(values.dtype)

        loss = jnp.zeros((), outputs["out"].dtype)
        for name, logits in outputs.items():
            weight = self.aux_weight if name == "aux" else 1.0
            loss += weight * mean(cross_entropy(logits, labels))
        right = self.predict(outputs["out"]) == labels
        return loss, {"accuracy": mean(right.astype(loss.dtype))}

    def measure(self, outputs: Array, batch: Batch) -> Measured:
        """The confusion matrix of each image, and the sum of its pixels' cross-entropies."""
        labels = batch["label"]
        entropy = jnp.where(_known(labels, self.num_classes), cross_entropy(outputs, labels), 0)
        sums = {
            "confusion": confusion_matrices(
                labels, self.predict(outputs), num_classes=self.num_classes
            ),
            "loss": jnp.sum(entropy, axis=(1, 2)),
        }
        return Measured(sums, records={})

    def finish(self, total: Measured, count: int) -> dict[str, float]:
        """The mean over the pixels of all images, and the overlap of each class.

        mIoU is the mean over the classes that any pixel has or was given; IoU_3 is that of class 3.
        """
        confusion = total.sums["confusion"]
        pixels = confusion.sum()
        if not pixels:
            raise InputError(
                "no pixel of the test images has a class, so there is no overlap: use a split "
                "with masks."
            )
        overlaps = intersection_over_union(confusion)
        return {
            "loss": float(total.sums["loss"] / pixels),
            "accuracy": float(np.trace(confusion) / pixels),
            "mIoU": float(np.nanmean(overlaps)),
            **{f"IoU_{i}": float(iou) for i, iou in enumerate(overlaps) if not np.isnan(iou)},
        }

    @staticmethod
    def sentence(metrics: Mapping[str, float]) -> str:
        return f"mIoU: {metrics['mIoU']:.4f} ({metrics['count']} images)"

    def predict(self, outputs: Array) -> Array:
        """The likeliest class of each pixel (N, H, W), int32."""
        return jnp.argmax(outputs, axis=-1).astype(jnp.int32)

    def draw(
        self,
        image: np.ndarray,
        example: Mapping[str, np.ndarray],
        found: np.ndarray,
        class_names: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tinted by the class of each pixel; not where none counts."""
        label = example["label"]
        of_found = np.where(_known(label, self.num_classes), found, 0)
        true, likely = (fitted(with_classes(image, x), PICTURE) for x in (label, of_found))
        return true, likely


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Of each pixel, in nats: (N, H, W, K), (N, H, W) -> (N, H, W); finite for any label."""
    # One-hot, for the gradient of a look-up is a scatter.
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def _known(labels: Any, num_classes: int) -> Any:
    return (labels >= 0) & (labels < num_classes)
