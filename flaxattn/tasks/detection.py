"""Boxes around objects, and what each is."""

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
from flaxattn.images.drawing import PICTURE, fitted, with_boxes
from flaxattn.models.detection import create_detector
from flaxattn.models.detection.roi_heads import Detections as Found
from flaxattn.models.detection.targets import Ratio, Targets
from flaxattn.tasks.detection_precision import Detections, Truth, detection_precisions
from flaxattn.tasks.task import Batch, Measured, require_unmixed

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
_CLEAR = 0.5  # the least score of what is drawn


@dataclasses.dataclass(frozen=True)
class Detection:
    """Faster R-CNN on images of one canvas; its class 0 is the background.

    Fields:
        num_classes: K, without the background.
        image_shape: (H, W, C) of the canvas.
        max_objects: G, the most objects of an image.
        metric: of `detection_precisions`.

    `of` raises InputError for a config that mixes images or smooths labels.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    max_objects: int
    metric: str = "voc2012"

    annotation: ClassVar[str] = "objects"
    headline: ClassVar[str] = "mAP"
    logged: ClassVar[tuple[str, ...]] = LOSSES

    @classmethod
    def of(cls, config: Any, *, num_classes: int) -> Self:
        require_unmixed(config)
        data = config.data
        return cls(num_classes, (*data.canvas, data.channels), data.max_objects, data.metric)

    def model(
        self, fields: Mapping[str, Any], *, dtype: DTypeLike, param_dtype: DTypeLike
    ) -> nn.Module:
        return create_detector(
            num_classes=self.num_classes + 1, dtype=dtype, param_dtype=param_dtype, **fields
        )

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        shape, many = jax.ShapeDtypeStruct, self.max_objects
        return {
            "image": shape(self.image_shape, jnp.float32),
            "size": shape((2,), jnp.int32),
            "original_size": shape((2,), jnp.int32),
            "boxes": shape((many, 4), jnp.float32),
            "labels": shape((many,), jnp.int32),
            "valid": shape((many,), jnp.bool_),
            "difficult": shape((many,), jnp.bool_),
            "image_id": shape((), jnp.int32),
        }

    def inputs(self, batch: Any) -> tuple:
        """Images, their sizes, and what training learns of them."""
        targets = Targets(batch["boxes"], batch["labels"], batch["valid"], batch["image_id"])
        return batch["image"], batch["size"], targets

    def prepare(self, key: Array, batch: Batch) -> Batch:
        """Labels from 1, for the network's class 0 is the background."""
        return batch | {"labels": batch["labels"] + 1}

    def loss(self, outputs: dict[str, Ratio], batch: Batch) -> tuple[Array, dict[str, Array]]:
        """The sum of Faster R-CNN's four losses, and each."""
        means = {name: outputs[name].numerator / outputs[name].denominator for name in LOSSES}
        return jnp.sum(jnp.stack([*means.values()])), means

    def measure(self, outputs: Found, batch: Batch) -> Measured:
        """All detections and objects, to be matched on the host."""
        truth = {name: batch[name] for name in ("boxes", "labels", "valid", "difficult")}
        found = self.predict(outputs)._asdict()
        return Measured(sums={}, records={"found": found, "truth": truth})

    def finish(self, total: Measured, count: int) -> dict[str, float]:
        """The mean average precision of the classes that any image has."""
        precisions = detection_precisions(
            Detections(**total.records["found"]),
            Truth(**total.records["truth"]),
            num_classes=self.num_classes,
            metric=self.metric,
        )
        if np.isnan(precisions).all():
            raise InputError(
                "no test image has an object that counts, so there is no average precision: use a "
                "split with objects."
            )
        return {"mAP": float(np.nanmean(precisions))}

    @staticmethod
    def sentence(metrics: Mapping[str, float]) -> str:
        return f"mAP: {metrics['mAP']:.4f} ({metrics['count']} images)"

    def predict(self, outputs: Found) -> Found:
        """The detections, with labels from 0."""
        return outputs._replace(labels=outputs.labels - 1)

    def draw(
        self,
        image: np.ndarray,
        example: Mapping[str, np.ndarray],
        found: Found,
        class_names: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """With boxes; of what was found those with a score of at least one half."""
        height, width = example["size"]
        picture = fitted(image[:height, :width], PICTURE)
        scale = PICTURE / max(height, width)

        def boxes_of(boxes: Any, labels: Any, captions: list[str]) -> np.ndarray:
            return with_boxes(picture, boxes * scale, labels.tolist(), captions)

        there = example["valid"]
        labels = example["labels"][there]
        true = boxes_of(example["boxes"][there], labels, [class_names[i] for i in labels])
        clear = found.valid & (found.scores >= _CLEAR)
        labels, scores = found.labels[clear], found.scores[clear]
        captions = [f"{class_names[i]} {s:.2f}" for i, s in zip(labels, scores, strict=True)]
        return true, boxes_of(found.boxes[clear], labels, captions)
