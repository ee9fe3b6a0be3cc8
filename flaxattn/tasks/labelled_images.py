"""Tasks that give a whole image one label or several."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.images.drawing import PICTURE, fitted, with_caption
from flaxattn.models import create_model
from flaxattn.tasks.mix import mix
from flaxattn.tasks.task import Batch


@dataclasses.dataclass(frozen=True)
class LabelledImages(abc.ABC):
    """A backbone of `flaxattn.MODELS` on images that mixup and CutMix may mix.

    Fields:
        num_classes: K.
        image_shape: (H, W, C).
        label_smoothing: how far each target is moved towards even chances.
        mixup_alpha, cutmix_alpha: of the two rules of `mix`; 0 is off.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    @classmethod
    def of(cls, config: Any, *, num_classes: int) -> Self:
        return cls(
            num_classes,
            (config.data.image_size, config.data.image_size, config.data.channels),
            label_smoothing=config.label_smoothing,
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
        )

    def model(
        self, fields: Mapping[str, Any], *, dtype: DTypeLike, param_dtype: DTypeLike
    ) -> nn.Module:
        return create_model(
            num_classes=self.num_classes, dtype=dtype, param_dtype=param_dtype, **fields
        )

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "image": jax.ShapeDtypeStruct(self.image_shape, jnp.float32),
            "label": jax.ShapeDtypeStruct(self.label_shape, jnp.int32),
        }

    def inputs(self, batch: Any) -> tuple:
        return (batch["image"],)

    def prepare(self, key: Array, batch: Batch) -> Batch:
        """{"image", "target": (N, K)}, mixed."""
        images, targets = mix(
            key,
            batch["image"],
            self.targets(batch["label"]),
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
        )
        return {"image": images, "target": targets}

    def draw(
        self,
        image: np.ndarray,
        example: Mapping[str, np.ndarray],
        found: np.ndarray,
        class_names: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """With the names of the classes, those that were found with their probabilities."""
        picture = fitted(image, PICTURE)
        true = ", ".join(class_names[i] for i in self.classes_in(example["label"]))
        likely = ", ".join(f"{class_names[i]} {found[i]:.2f}" for i in self.classes_found(found))
        return with_caption(picture, true), with_caption(picture, likely)

    @property
    @abc.abstractmethod
    def label_shape(self) -> tuple[int, ...]:
        """Of one example's label."""

    @abc.abstractmethod
    def targets(self, labels: Array) -> Array:
        """Labels as smoothed targets (N, K), float32."""

    @abc.abstractmethod
    def classes_in(self, label: np.ndarray) -> np.ndarray:
        """The classes (n,) that one example's label names."""

    @abc.abstractmethod
    def classes_found(self, probabilities: np.ndarray) -> np.ndarray:
        """The classes (n,) that an example shows by its probabilities (K,)."""
