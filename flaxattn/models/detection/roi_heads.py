"""What stands in each proposed box, and where exactly."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory
from flaxattn.layers.conv import kaiming_fan_out, torch_default
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.sharded import on_each_device
from flaxattn.models.detection.boxes import clip, decode, encode, has_sides
from flaxattn.models.detection.conv_norm import apply, conv_norm
from flaxattn.models.detection.nms import nms
from flaxattn.models.detection.region_proposals import Proposals
from flaxattn.models.detection.roi_align import roi_align
from flaxattn.models.detection.targets import (
    Draw,
    Ratio,
    Targets,
    masked_sum,
    match,
    sample,
    smooth_l1,
)

_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the deltas
_LEAST_SIDE = 1e-2  # of a detection, in pixels


class Detections(NamedTuple):
    """What is found in a batch of images, the best first.

    Fields:
        boxes: (N, D, 4), x1, y1, x2, y2 in pixels.
        scores: (N, D), between 0 and 1.
        labels: (N, D), int32, from 1.
        valid: (N, D), bool: which are there. The rest is zero.
    """

    boxes: Array
    scores: Array
    labels: Array
    valid: Array


class _Regions(NamedTuple):
    """The boxes that an image is trained on, (S, 4), with labels and deltas to learn."""

    boxes: Array
    labels: Array
    deltas: Array
    positive: Array
    valid: Array


class TwoLayerHead(nn.Module):
    """Two fully connected layers with ReLU: (N, h, w, C) -> (N, features)."""

    features: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.fc6 = _linear(self, self.features, axis=(1, 2, 3))
        self.fc7 = _linear(self, self.features)

    def __call__(self, x: Array, train: bool = False) -> Array:
        return jax.nn.relu(self.fc7(jax.nn.relu(self.fc6(x))))


class ConvHead(nn.Module):
    """3x3 convolutions, each with a norm and ReLU, and a fully connected layer with ReLU.

    (N, h, w, C) -> (N, features).

    Fields:
        conv_features: channels of the convolutions.
        norm: makes a normalisation from (name=), to be called with (x, train); None for none, and
            biases.
    """

    conv_features: Sequence[int]
    features: int
    norm: LayerFactory | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.convs = [conv_norm(self, width, 3, kaiming_fan_out) for width in self.conv_features]
        self.fc = _linear(self, self.features, axis=(1, 2, 3))

    def __call__(self, x: Array, train: bool = False) -> Array:
        for layers in self.convs:
            x = jax.nn.relu(apply(layers, x, train))
        return jax.nn.relu(self.fc(x))


class BoxPredictor(nn.Module):
    """(N, C) -> logits (N, num_classes) and deltas (N, num_classes, 4), float32 or wider."""

    num_classes: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.cls_score = _linear(self, self.num_classes)
        self.bbox_pred = _linear(self, 4 * self.num_classes)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        wide = at_least_float32(x.dtype)
        logits, deltas = self.cls_score(x).astype(wide), self.bbox_pred(x).astype(wide)
        return logits, deltas.reshape(x.shape[0], self.num_classes, 4)


def _linear(module: Any, features: int, axis: int | tuple[int, ...] = -1) -> nn.DenseGeneral:
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        kernel_init=torch_default,
    )


class RoiHeads(nn.Module):
    """Fast R-CNN's classifier of regions, as torchvision's.

    Girshick, "Fast R-CNN", ICCV 2015, arXiv:1504.08083.

    Fields:
        num_classes: with the background, which is class 0.
        conv_features: channels of the box head's convolutions (`ConvHead`); () for a head of fully
            connected layers alone (`TwoLayerHead`).
        hidden_features: of the fully connected layers.
        norm: of the convolutions; None for none.
        output_size, formulation: see `roi_align`.
        score_threshold: detections have a higher score.
        nms_threshold: IoU above which the worse of two boxes of a class goes.
        num_detections: the most that are kept of an image.
        num_candidates: of an image's boxes of all classes, the best that go into the non-maximum
            suppression. torchvision takes all: the results are the same where these are all, or
            leave `num_detections`.
        foreground_iou, background_iou: see `targets.match`.
        num_samples, positive_share: see `targets.sample`.
        draw: the numbers by which boxes are sampled.
    """

    num_classes: int
    conv_features: Sequence[int] = ()
    hidden_features: int = 1024
    norm: LayerFactory | None = None
    output_size: int = 7
    formulation: str = "auto"
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    num_detections: int = 100
    num_candidates: int = 2000
    foreground_iou: float = 0.5
    background_iou: float = 0.5
    num_samples: int = 512
    positive_share: float = 0.25
    draw: Draw = jax.random.uniform
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.box_head: nn.Module
        if self.conv_features:
            self.box_head = ConvHead(
                self.conv_features, self.hidden_features, norm=self.norm, **dtypes
            )
        else:
            self.box_head = TwoLayerHead(self.hidden_features, **dtypes)
        self.box_predictor = BoxPredictor(self.num_classes, **dtypes)

    def __call__(
        self, maps: Sequence[Array], strides: Sequence[int], boxes: Array, train: bool = False
    ) -> tuple[Array, Array]:
        """Logits (N, R, num_classes) and deltas (N, R, num_classes, 4) of boxes (N, R, 4)."""
        pooled = roi_align(
            maps,
            boxes,
            strides,
            output_size=self.output_size,
            formulation=self.formulation,
        )
        count = boxes.shape[:2]
        logits, deltas = self.box_predictor(
            self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train)
        )
        return logits.reshape(*count, -1), deltas.reshape(*count, -1, 4)

    def detections(
        self, maps: Sequence[Array], strides: Sequence[int], proposals: Proposals, sizes: Array
    ) -> Detections:
        """What is found in the proposals, cut at the edges of images of `sizes`, (N, 2)."""
        logits, deltas = self(maps, strides, proposals.boxes)

        def best_of_image(logits: Array, deltas: Array, own: Proposals, size: Array) -> Detections:
            scores = jax.nn.softmax(logits)[:, 1:]
            boxes = clip(decode(deltas[:, 1:], own.boxes[:, None], _WEIGHTS), size)
            candidate = (scores > self.score_threshold) & has_sides(boxes, _LEAST_SIDE)
            scores = jnp.where(candidate & own.valid[:, None], scores, -1).ravel()
            scores, index = lax.top_k(scores, min(self.num_candidates, len(scores)))
            boxes = boxes.reshape(-1, 4)[index]
            labels = (1 + index % (self.num_classes - 1)).astype(jnp.int32)
            keep = nms(boxes, threshold=self.nms_threshold, valid=scores >= 0, groups=labels)
            scores = jnp.where(keep, scores, -1)
            scores, index = lax.top_k(scores, min(self.num_detections, len(scores)))
            valid = scores >= 0
            return Detections(
                jnp.where(valid[:, None], boxes[index], 0),
                jnp.where(valid, scores, 0),
                jnp.where(valid, labels[index], 0),
                valid,
            )

        return on_each_device(jax.vmap(best_of_image))(logits, deltas, proposals, sizes)

    def losses(
        self,
        maps: Sequence[Array],
        strides: Sequence[int],
        proposals: Proposals,
        targets: Targets,
        keys: Array,
        train: bool = True,
    ) -> dict[str, Ratio]:
        """Cross-entropy of the sampled boxes, and smooth L1 of the positive ones' deltas.

        Both are divided by the number of all sampled boxes. keys: (N,), of the samples.
        """
        regions = on_each_device(jax.vmap(self._regions))(proposals, targets, keys)
        regions = lax.stop_gradient(regions)
        logits, deltas = self(maps, strides, regions.boxes, train)
        labels = regions.labels[:, :, None]
        entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=2)[:, :, 0]
        deltas = jnp.take_along_axis(deltas, labels[..., None], axis=2)[:, :, 0]
        count = jnp.sum(regions.valid).astype(logits.dtype)
        return {
            "loss_classifier": Ratio(masked_sum(entropy, regions.valid), count),
            "loss_box_reg": Ratio(
                masked_sum(smooth_l1(deltas, regions.deltas), regions.positive), count
            ),
        }

    def _regions(self, proposals: Proposals, targets: Targets, key: Array) -> _Regions:
        """A sample of one image's proposals and objects."""
        objects = targets.boxes.astype(proposals.boxes.dtype)
        boxes = jnp.concatenate([proposals.boxes, objects])
        valid = jnp.concatenate([proposals.valid, targets.valid])
        matches = match(
            boxes,
            objects,
            targets.valid,
            foreground=self.foreground_iou,
            background=self.background_iou,
        )
        samples = sample(
            key,
            matches.positive & valid,
            matches.negative & valid,
            count=self.num_samples,
            positive_share=self.positive_share,
            draw=self.draw,
        )
        boxes, nearest = boxes[samples.chosen], matches.nearest[samples.chosen]
        labels = jnp.where(samples.positive, targets.labels[nearest], 0)
        deltas = encode(objects[nearest], boxes, _WEIGHTS)
        return _Regions(boxes, labels, deltas, samples.positive, samples.valid)
