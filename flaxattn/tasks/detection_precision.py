"""The average precision of boxes, as Pascal VOC and COCO count it. NumPy, on the host."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flaxattn.errors import unknown

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Of one image and class; COCO does not look at boxes of a lower score.
COCO_MOST_BOXES = 100

# Boxes in falling order of score, objects, which are difficult, thresholds: which boxes hit, and
# which do not count, bool (n, thresholds). All of one image and class.
Match = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Detections(NamedTuple):
    """What a network found in N images, padded to D boxes each.

    Fields:
        boxes: (N, D, 4), left, top, right and bottom edge in pixels.
        labels: (N, D), from 0.
        scores: (N, D).
        valid: bool (N, D), which of the D are detections.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


class Truth(NamedTuple):
    """The objects of N images, padded to G each.

    Fields:
        boxes, labels: (N, G, 4) and (N, G), as in `Detections` and in the same pixels.
        valid: bool (N, G), which of the G are objects.
        difficult: bool (N, G), which of these count neither as found nor as missed.
    """

    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    difficult: np.ndarray


def detection_precisions(
    detections: Detections, truth: Truth, *, num_classes: int, metric: str = "voc2012"
) -> np.ndarray:
    """The average precision of each class, float64 (K,); their mean is the mAP.

    NaN for a class that has no object, or only difficult ones: leave it out of the mean.

    Args:
        metric:
            "voc2012": of VOC 2010 to 2012, the area under the precision that is reached at each
                recall or beyond; a box hits if its overlap is above 0.5.
            "voc2007": the mean of that precision at the recalls 0, 0.1 ... 1.
            "coco50": its mean at 101 recalls; a box hits from an overlap of 0.5 on.
            "coco": the mean over the overlaps 0.5, 0.55 ... 0.95 of what "coco50" is for one.

    In VOC each box is compared with the object of its class that it overlaps most. It is a hit if
    that object has not been hit by a better box, and otherwise wrong, a second box on one object
    included; if the object is difficult, it does not count. In COCO a box takes the object that it
    overlaps most of those still free, and difficult objects are what COCO calls crowds: any number
    of boxes may lie on one, overlap is then a part of the box alone, and none of them counts.
    COCO's are pycocotools' numbers, with objects of all sizes and 100 boxes an image and class.

    The devkit counts pixels from 1 and adds 1 to each side; with boxes that count from 0, edge to
    edge (`flaxattn.data.records.Objects`), the same overlap needs neither.

    Deviation: boxes of one score come together, in whatever order they are given.

    Raises InputError for an unknown metric.
    """
    if metric not in _SUMMARIES:
        raise unknown("metric", metric, _SUMMARIES)
    match = _match_coco if metric.startswith("coco") else _match_voc
    thresholds = COCO_THRESHOLDS if metric == "coco" else COCO_THRESHOLDS[:1]
    images = zip(zip(*detections, strict=True), zip(*truth, strict=True), strict=True)
    found = [_found(Detections(*own), Truth(*real), match, thresholds) for own, real in images]
    labels, scores, hits, void = (np.concatenate(parts) for parts in zip(*found, strict=True))
    precisions = np.full(num_classes, np.nan)
    for label in range(num_classes):
        required = np.sum(truth.valid & ~truth.difficult & (truth.labels == label))
        if required:
            own = labels == label
            curves = [
                _curve(scores[own], hits[own, column], void[own, column], required)
                for column in range(len(thresholds))
            ]
            precisions[label] = np.mean([_SUMMARIES[metric](*curve) for curve in curves])
    return precisions


def overlaps(
    boxes: np.ndarray, others: np.ndarray, of_box: np.ndarray | bool = False
) -> np.ndarray:
    """Intersection over union of boxes (n, 4) and (m, 4): float64 (n, m).

    Where `of_box`, bool (m,), the intersection over the box's own area.
    """
    boxes, others = (np.asarray(each, np.float64) for each in (boxes, others))
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared, area, other_area = (
        np.prod(np.maximum(end - start, 0), axis=-1)
        for start, end in ((low, high), *((each[:, :2], each[:, 2:]) for each in (boxes, others)))
    )
    whole = np.where(of_box, area[:, None], area[:, None] + other_area - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _found(
    detections: Detections, truth: Truth, match: Match, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one image: labels and scores (n,), and which hit or do not count, bool (n, thresholds)."""
    boxes, labels, scores = (each[detections.valid] for each in detections[:3])
    order = np.argsort(-scores, kind="stable")
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    objects, classes, difficult = (
        each[truth.valid] for each in (truth.boxes, truth.labels, truth.difficult)
    )
    hits, void = (np.zeros((len(boxes), len(thresholds)), bool) for _ in range(2))
    for label in np.unique(labels):
        own, real = labels == label, classes == label
        hits[own], void[own] = match(boxes[own], objects[real], difficult[real], thresholds)
    return labels, scores, hits, void


def _match_voc(
    boxes: np.ndarray, objects: np.ndarray, difficult: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # One object more, which nothing overlaps, so that there is always a nearest one.
    overlap = np.pad(overlaps(boxes, objects), ((0, 0), (0, 1)))
    nearest = overlap.argmax(axis=1)
    near = overlap.max(axis=1) > thresholds[0]
    on_difficult = np.append(difficult, False)[nearest]
    first = np.zeros(len(boxes), bool)
    first[np.unique(np.where(near, nearest, -1), return_index=True)[1]] = True
    return (near & first & ~on_difficult)[:, None], (near & on_difficult)[:, None]


def _match_coco(
    boxes: np.ndarray, objects: np.ndarray, difficult: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    overlap = overlaps(boxes, objects, of_box=difficult)
    hits, void = (np.zeros((len(boxes), len(thresholds)), bool) for _ in range(2))
    free = np.ones((len(thresholds), len(objects)), bool)
    void[COCO_MOST_BOXES:] = True
    rows = np.arange(len(thresholds))
    for place in np.flatnonzero(overlap[:COCO_MOST_BOXES].max(axis=1, initial=0) >= thresholds[0]):
        near = free & (overlap[place] >= thresholds[:, None])
        required = near & ~difficult
        near = np.where(required.any(axis=1, keepdims=True), required, near)
        # Of equal overlaps the last, as in pycocotools.
        chosen = len(objects) - 1 - np.where(near, overlap[place], -1)[:, ::-1].argmax(axis=1)
        matched = near.any(axis=1)
        hits[place], void[place] = matched & ~difficult[chosen], matched & difficult[chosen]
        free[rows[hits[place]], chosen[hits[place]]] = False
    return hits, void


def _curve(
    scores: np.ndarray, hits: np.ndarray, void: np.ndarray, required: int
) -> tuple[np.ndarray, np.ndarray]:
    """The recalls that the scores reach, rising, and the best precision there or beyond."""
    scores, hits = scores[~void], hits[~void]
    order = np.argsort(-scores)
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    found = np.cumsum(hits[order])[last]
    precision = found / (last + 1)
    return found / required, np.maximum.accumulate(precision[::-1])[::-1]


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def _mean_at(recall: np.ndarray, precision: np.ndarray, *, at: np.ndarray) -> float:
    return float(np.mean(np.append(precision, 0)[np.searchsorted(recall, at)]))


# COCO's recalls are pycocotools' own: some are above k / 100 in the last bit.
_at_101 = functools.partial(_mean_at, at=np.linspace(0, 1, 101))
_SUMMARIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "voc2012": _area,
    "voc2007": functools.partial(_mean_at, at=np.arange(11) / 10),
    "coco50": _at_101,
    "coco": _at_101,
}
