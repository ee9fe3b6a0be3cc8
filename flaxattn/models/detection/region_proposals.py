"""The region proposal network: where objects may be."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.sharded import on_each_device
from flaxattn.models.detection.anchors import anchors
from flaxattn.models.detection.boxes import clip, decode, encode, has_sides
from flaxattn.models.detection.nms import nms
from flaxattn.models.detection.targets import (
    Draw,
    Ratio,
    Targets,
    masked_sum,
    match,
    sample,
    smooth_l1,
)

_LEAST_SIDE = 1e-3  # of a proposal, in pixels


class Predictions(NamedTuple):
    """What the network says of the anchors of each level, a list of arrays each.

    Fields:
        logits: (N, A), of whether there is an object.
        deltas: (N, A, 4), see `boxes.decode`.
        anchors: (A, 4).
    """

    logits: list[Array]
    deltas: list[Array]
    anchors: list[Array]


class Proposals(NamedTuple):
    """Boxes (N, P, 4), the best first, and which of them are there, (N, P); the rest is zero."""

    boxes: Array
    valid: Array


class ProposalHead(nn.Module):
    """3x3 convolutions with ReLU, and two 1x1 ones, the same for each level.

    (N, H, W, C) -> logits (N, H * W * num_anchors) and deltas (N, H * W * num_anchors, 4), float32
    or wider.
    """

    features: int
    num_anchors: int
    depth: int = 1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        # Lists in a list, for the numbers in torchvision's names.
        self.conv = [[self._conv(self.features, 3)] for _ in range(self.depth)]
        self.cls_logits = self._conv(self.num_anchors, 1)
        self.bbox_pred = self._conv(4 * self.num_anchors, 1)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        for (conv,) in self.conv:
            x = jax.nn.relu(conv(x))
        wide = at_least_float32(x.dtype)
        logits, deltas = self.cls_logits(x).astype(wide), self.bbox_pred(x).astype(wide)
        return logits.reshape(x.shape[0], -1), deltas.reshape(x.shape[0], -1, 4)

    def _conv(self, features: int, kernel_size: int) -> Conv:
        return Conv(
            features,
            kernel_size,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class RegionProposals(nn.Module):
    """Region proposal network, as torchvision's.

    Ren, He, Girshick, Sun, "Faster R-CNN", NIPS 2015, arXiv:1506.01497.

    Fields:
        features: channels of the maps.
        depth: 3x3 convolutions in the head.
        anchor_sizes, aspect_ratios: see `anchors.anchors`; as many sizes for each map.
        pre_nms_train, pre_nms_test: anchors of each level that go into the non-maximum suppression.
        post_nms_train, post_nms_test: proposals of an image, of all levels together.
        nms_threshold: IoU above which the worse of two boxes of a level goes.
        score_threshold: the least score, the logit's sigmoid, of a proposal.
        foreground_iou, background_iou: see `targets.match`.
        num_samples, positive_share: see `targets.sample`.
        draw: the numbers by which anchors are sampled.

    Raises InputError for anchor sizes of another number of maps than there are.
    """

    features: int = 256
    depth: int = 1
    anchor_sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    post_nms_test: int = 1000
    nms_threshold: float = 0.7
    score_threshold: float = 0.0
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    num_samples: int = 256
    positive_share: float = 0.5
    draw: Draw = jax.random.uniform
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.head = ProposalHead(
            self.features,
            len(self.anchor_sizes[0]) * len(self.aspect_ratios),
            self.depth,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def __call__(self, maps: Sequence[Array], canvas: Sequence[int]) -> Predictions:
        """What the head says of the maps of images on a canvas (height, width)."""
        if len(self.anchor_sizes) != len(maps):
            raise InputError(
                f"anchor_sizes={self.anchor_sizes} are for {len(self.anchor_sizes)} maps, and the "
                f"pyramid has {len(maps)}: give a tuple of sizes for each."
            )
        logits, deltas = zip(*(self.head(x) for x in maps), strict=True)
        found = anchors(
            [x.shape[1:3] for x in maps],
            canvas,
            sizes=self.anchor_sizes,
            aspect_ratios=self.aspect_ratios,
            dtype=deltas[0].dtype,
        )
        return Predictions([*logits], [*deltas], found)

    def proposals(self, predictions: Predictions, sizes: Array, *, train: bool) -> Proposals:
        """The best boxes of each image, cut at its edges; no gradient goes through them.

        sizes: (N, 2), heights and widths of the images on the canvas.
        """
        before = self.pre_nms_train if train else self.pre_nms_test
        after = self.post_nms_train if train else self.post_nms_test

        def best_of_level(logits: Array, deltas: Array, own: Array, size: Array):
            logits, index = lax.top_k(logits, min(before, len(logits)))
            boxes = clip(decode(deltas[index], own[index]), size)
            scores = jax.nn.sigmoid(logits)
            valid = has_sides(boxes, _LEAST_SIDE) & (scores >= self.score_threshold)
            return boxes, scores, nms(boxes, threshold=self.nms_threshold, valid=valid)

        def best_of_image(
            own: list[Array], logits: list[Array], deltas: list[Array], size: Array
        ) -> Proposals:
            levels = zip(logits, deltas, own, strict=True)
            found = [best_of_level(*level, size) for level in levels]
            boxes, scores, keep = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
            scores, index = lax.top_k(jnp.where(keep, scores, -1), min(after, len(scores)))
            valid = scores >= 0
            return Proposals(jnp.where(valid[:, None], boxes[index], 0), valid)

        given = lax.stop_gradient((predictions.logits, predictions.deltas))
        best = jax.vmap(best_of_image, in_axes=(None, 0, 0, 0))
        return on_each_device(best, predictions.anchors)(*given, sizes)

    def losses(self, predictions: Predictions, targets: Targets, keys: Array) -> dict[str, Ratio]:
        """Binary cross-entropy of the sampled anchors, and smooth L1 of the positive ones' deltas.

        Both are divided by the number of all sampled anchors. keys: (N,), of the samples.
        """
        all_anchors = jnp.concatenate(predictions.anchors)
        logits = jnp.concatenate(predictions.logits, axis=1)
        deltas = jnp.concatenate(predictions.deltas, axis=1)

        def choose(all_anchors: Array, key: Array, own: Targets):
            boxes = own.boxes.astype(all_anchors.dtype)
            matches = match(
                all_anchors,
                boxes,
                own.valid,
                foreground=self.foreground_iou,
                background=self.background_iou,
                low_quality=True,
            )
            samples = sample(
                key,
                matches.positive,
                matches.negative,
                count=self.num_samples,
                positive_share=self.positive_share,
                draw=self.draw,
            )
            near = boxes[matches.nearest[samples.chosen]]
            return samples, encode(near, all_anchors[samples.chosen])

        # Image by image: the overlaps of 270,000 anchors with 64 objects take 69 MB.
        def one_by_one(all_anchors: Array, *images: Any):
            return lax.map(lambda image: choose(all_anchors, *image), images)

        samples, wanted = on_each_device(one_by_one, all_anchors)(keys, targets)
        logits = jnp.take_along_axis(logits, samples.chosen, axis=1)
        deltas = jnp.take_along_axis(deltas, samples.chosen[:, :, None], axis=1)
        is_object = samples.positive.astype(logits.dtype)
        entropy = jax.nn.softplus(logits) - logits * is_object
        count = jnp.sum(samples.valid).astype(logits.dtype)
        return {
            "loss_objectness": Ratio(masked_sum(entropy, samples.valid), count),
            "loss_rpn_box_reg": Ratio(
                masked_sum(smooth_l1(deltas, wanted), samples.positive), count
            ),
        }
