"""Faster R-CNN."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import LayerFactory, Namings
from flaxattn.errors import InputError, require_least, unknown
from flaxattn.layers.norm import FrozenBatchNorm
from flaxattn.models import create_model
from flaxattn.models.detection.pyramid import FUSIONS, POSITIONS, PyramidBackbone
from flaxattn.models.detection.region_proposals import RegionProposals
from flaxattn.models.detection.roi_heads import Detections, RoiHeads
from flaxattn.models.detection.targets import Ratio, Targets
from flaxattn.models.place import place
from flaxattn.models.placement import Placement, Places, Slot

_CANVAS = 32  # what both sides of a canvas are multiples of


class FasterRCNN(nn.Module):
    """Faster R-CNN with a feature pyramid, numerically and by its parameters' names torchvision's.

    Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
    Networks", NIPS 2015, arXiv:1506.01497.

        detections = model.apply(variables, images, sizes)
        losses = model.apply(
            variables, images, sizes, targets, train=True, rngs={"sample": key}
        )

    Images (N, H, W, C), already normalised, resized, and padded with zeros below and on the right
    to one canvas whose sides are multiples of 32; `sizes` (N, 2) holds the heights and widths they
    have on it, None for all of it. Boxes are in pixels of the canvas (`postprocess`).

    Fields:
        num_classes: with the background, which is class 0.
        body: the network below the pyramid: fields of `create_model`, its name first, as in
            dict(name="resnet50", attention="se"). It has stages of blocks.
        taps: the blocks whose maps the pyramid reads, as in `ResidualBackbone.maps`.
        features: channels of the pyramid.
        attention: layers at the pyramid's levels, in any form that `place` takes: its stages are
            the levels, from 1, the finest, and its positions "post", "lateral" and "input"
            (`FeaturePyramid`).
        fuse: of the attended maps: "bottom_up", "top_down", or None (`FeaturePyramid`).
        proposals: fields of `RegionProposals` that differ from its own.
        heads: fields of `RoiHeads` that differ from its own.
        norm: of the body. torchvision freezes it when it starts from trained weights, and then
            trains the body's last three stages only. Its released weights of
            fasterrcnn_resnet50_fpn (COCO_V1) want an epsilon of 0:
            functools.partial(FrozenBatchNorm, epsilon=0.0).
        head_norm: of the pyramid and of the box head's convolutions; None for none.
        dtype: of the convolutions; boxes, scores and losses are float32 or wider.
        param_dtype: of parameters and running statistics.

    Under a mesh with an axis `data` each device makes the proposals, samples and detections of its
    own images (`on_each_device`). Under `jax.shard_map` nothing is exchanged at all: add up each
    `Ratio` of the losses, its numerator and its denominator, over the devices before you divide.

    Deviation: with `head_norm`, in train mode, statistics of the box head include the places of
    samples that are missing where an image has fewer boxes than `num_samples`.

    Raises InputError for fewer than two classes, for fields that `proposals` or `heads` cannot
    have, for an unknown `fuse`, one without attention, at "input" or with graft=True, and for what
    `place` refuses; and when called, for a canvas whose sides are not multiples of 32, for anchors
    of another number of maps, for a body without stages, and for what `create_model` refuses.
    """

    num_classes: int = 91
    body: Mapping[str, Any] = FrozenDict(name="resnet50")
    taps: Sequence[tuple[int, int]] = ((1, -1), (2, -1), (3, -1), (4, -1))
    features: int = 256
    attention: Slot = None
    fuse: str | None = None
    proposals: Mapping[str, Any] = FrozenDict()
    heads: Mapping[str, Any] = FrozenDict()
    norm: LayerFactory = FrozenBatchNorm
    head_norm: LayerFactory | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    head_name: ClassVar[str] = "roi_heads/box_predictor"

    def __post_init__(self) -> None:
        require_least("num_classes", self.num_classes, 2)
        for field in ("body", "proposals", "heads"):  # hashable, as a module's fields should be
            setattr(self, field, FrozenDict(getattr(self, field)))
        for field, part in (("proposals", RegionProposals), ("heads", RoiHeads)):
            known = {own.name for own in dataclasses.fields(part)}
            for name in getattr(self, field):
                if name not in known:
                    raise unknown(f"field of {part.__name__}", name, known)
        places = Places([1] * len(self.taps), POSITIONS)
        self.attention = place("attention", self.attention, places)
        self._require_fusible()
        super().__post_init__()

    def setup(self) -> None:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        head_norm = self.head_norm and functools.partial(self.head_norm, **dtypes)
        self.backbone = PyramidBackbone(
            self._network,
            self.taps,
            {
                "features": self.features,
                "norm": head_norm,
                "attention": self.attention,
                "fuse": self.fuse,
                **dtypes,
            },
        )
        self.rpn = RegionProposals(self.features, **dtypes, **self.proposals)
        self.roi_heads = RoiHeads(self.num_classes, norm=head_norm, **dtypes, **self.heads)

    def __call__(
        self,
        images: Array,
        sizes: Array | None = None,
        targets: Targets | None = None,
        train: bool = False,
    ) -> Detections | dict[str, Ratio]:
        """What is in the images, boxes cut at the edges of their `sizes`; in train mode `losses`.

        Raises InputError for train mode without sizes or targets.
        """
        canvas = images.shape[1:3]
        if train:
            if sizes is None or targets is None:
                raise InputError(
                    "train=True returns losses: pass apply(variables, images, sizes, targets, ...)."
                )
            return self.losses(images, sizes, targets)
        if sizes is None:
            sizes = jnp.tile(jnp.array([canvas]), (images.shape[0], 1))
        maps = self.pyramid(images)
        proposals = self.rpn.proposals(self.rpn(maps, canvas), sizes, train=False)
        return self.roi_heads.detections(maps[:-1], _strides(canvas, maps[:-1]), proposals, sizes)

    def losses(
        self, images: Array, sizes: Array, targets: Targets, train: bool = True
    ) -> dict[str, Ratio]:
        """torchvision's four losses: loss_objectness, loss_rpn_box_reg, loss_classifier and
        loss_box_reg. What is trained is the sum of the four quotients.

        Random numbers come from the "sample" stream; an image's follow from it and its `image_id`,
        wherever the image stands in the batch.

        Args:
            train: whether norms that are not frozen take the batch's statistics.
        """
        canvas = images.shape[1:3]
        maps = self.pyramid(images, train)
        predictions = self.rpn(maps, canvas)
        proposals = self.rpn.proposals(predictions, sizes, train=True)
        key = self.make_rng("sample")
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(targets.image_id)
        return {
            **self.rpn.losses(predictions, targets, keys[:, 0]),
            **self.roi_heads.losses(
                maps[:-1], _strides(canvas, maps[:-1]), proposals, targets, keys[:, 1], train
            ),
        }

    def pyramid(self, images: Array, train: bool = False) -> list[Array]:
        """The maps that proposals are made of; regions are read from all but the last."""
        canvas = images.shape[1:3]
        if any(side % _CANVAS for side in canvas):
            height, width = (math.ceil(side / _CANVAS) * _CANVAS for side in canvas)
            raise InputError(
                f"images of {canvas[0]}x{canvas[1]} pixels: pad them with zeros to multiples of "
                f"{_CANVAS}, such as {height}x{width}, and pass their sizes."
            )
        return self.backbone(images, train)

    @property
    def namings(self) -> Namings:
        """The renames of torchvision's files, and of those that its versions before 0.13 wrote."""
        below = create_model(**self._network).namings.get("torchvision", ())
        renames: list[tuple[str, ...]] = [
            (f"backbone.body.{theirs.removeprefix('features.')}", f"backbone.body.{ours}", *layout)
            for theirs, ours, *layout in below
        ]
        renames.append(("box_head.fc6", "box_head.fc6", "linear"))
        if convs := len(self.heads.get("conv_features", ())):
            numbers = itertools.product(range(convs), range(2))
            renames += [(f"box_head.{i}.{j}", f"box_head.convs_{i}_{j}") for i, j in numbers]
            renames.append((f"box_head.{convs + 1}", "box_head.fc", "linear"))
        old: list[tuple[str, ...]] = [
            (f"fpn.{blocks}.{level}", f"fpn.{blocks}_{level}_0")
            for blocks in ("inner_blocks", "layer_blocks")
            for level in range(len(self.taps))
        ]
        old.append(("rpn.head.conv", "rpn.head.conv_0_0"))
        return {"torchvision": (*renames,), "torchvision_old": (*renames, *old)}

    @property
    def _network(self) -> dict[str, Any]:
        """What `create_model` makes the body of."""
        own = {"num_classes": 0, "norm": self.norm}
        return {**own, "dtype": self.dtype, "param_dtype": self.param_dtype, **self.body}

    def _require_fusible(self) -> None:
        if self.fuse is None:
            return
        if self.fuse not in FUSIONS:
            raise unknown("fuse", self.fuse, FUSIONS)
        if not isinstance(self.attention, Placement):
            raise InputError(
                f"fuse={self.fuse!r} without attention: it adds attended maps, so pass "
                f"attention=..., or leave it out."
            )
        if self.attention.position == "input":
            raise InputError(
                f"fuse={self.fuse!r} at position 'input': the body's maps differ in channels; use "
                f"'lateral' or 'post'."
            )
        if self.attention.graft:
            raise InputError(
                f"fuse={self.fuse!r} with graft=True: the sums change the detections from the "
                f"start; leave one of them out."
            )


def _strides(canvas: Sequence[int], maps: Sequence[Array]) -> list[int]:
    return [canvas[0] // x.shape[1] for x in maps]


def postprocess(detections: Detections, sizes: Array, original_sizes: Array) -> Detections:
    """The same detections in pixels of the images as they were before they were resized.

    Args:
        sizes, original_sizes: (N, 2), heights and widths on the canvas and before.

    As in torchvision, the ratios are quotients in float32.
    """
    ratios = original_sizes.astype(jnp.float32) / sizes.astype(jnp.float32)
    ratios = jnp.tile(ratios[:, ::-1], (1, 2)).astype(detections.boxes.dtype)
    return detections._replace(boxes=detections.boxes * ratios[:, None, :])
