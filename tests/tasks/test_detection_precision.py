import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn.errors import InputError
from flaxattn.tasks.detection_precision import (
    Detections,
    Truth,
    detection_precisions,
    overlaps,
)

METRICS = ("voc2012", "voc2007", "coco50", "coco")
BOX = (10.0, 10.0, 20.0, 20.0)
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)


def shifted(box, by):
    return tuple(np.add(box, [by, 0, by, 0]))


def padded(rows, width, empty):
    filled = [[*row, *[empty] * (width - len(row))] for row in rows]
    return np.array(filled, np.float32), np.array(
        [[i < len(row) for i in range(width)] for row in rows]
    )


def detections(*images):
    """Of each image a list of (box, label, score)."""
    rows, valid = padded(
        [[(*box, label, score) for box, label, score in found] for found in images],
        max(1, *map(len, images)) if len(images) > 1 else max(1, len(images[0])),
        (0,) * 6,
    )
    return Detections(rows[..., :4], rows[..., 4].astype(np.int32), rows[..., 5], valid)


def truth(*images):
    """Of each image a list of (box, label) or (box, label, difficult)."""
    rows, valid = padded(
        [[(*each[0], each[1], *(each[2:] or (0,))) for each in objects] for objects in images],
        max(1, max(map(len, images))),
        (0,) * 6,
    )
    return Truth(rows[..., :4], rows[..., 4].astype(np.int32), valid, rows[..., 5] > 0)


def precision(found, real, metric="voc2012", num_classes=1):
    return detection_precisions(found, real, num_classes=num_classes, metric=metric)


# Worked by hand


def test_hits_and_misses_of_one_class():
    """Hit, miss, hit of three objects: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3."""
    found = detections([(BOX, 0, 0.9), (ELSEWHERE, 0, 0.8)], [(BOX, 0, 0.7)])
    real = truth([(BOX, 0)], [(BOX, 0), (ELSEWHERE, 0)])
    assert precision(found, real) == pytest.approx(1 / 3 + 2 / 3 * 1 / 3)
    # Recalls 0 to 0.3 reach precision 1, 0.4 to 0.6 reach 2/3, and 0.7 to 1 none.
    assert precision(found, real, "voc2007") == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert precision(found, real, "coco50") == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)


def test_voc2007_counts_a_recall_that_is_reached_exactly():
    """Three of ten objects: recalls 0, 0.1, 0.2 and 0.3, though 3 * 0.1 is more than 0.3."""
    boxes = [shifted(BOX, 20 * place) for place in range(10)]
    found = detections([(box, 0, 0.9) for box in boxes[:3]])
    real = truth([(box, 0) for box in boxes])
    assert precision(found, real, "voc2007") == pytest.approx(4 / 11)


def test_a_second_box_on_one_object_is_wrong():
    found = detections([(BOX, 0, 0.9), (shifted(BOX, 1), 0, 0.8), (ELSEWHERE, 0, 0.7)])
    real = truth([(BOX, 0), (ELSEWHERE, 0)])
    assert precision(found, real) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_in_voc_a_box_asks_for_its_nearest_object_alone():
    """The second box overlaps both objects; VOC's nearest is taken, COCO's next is free."""
    near = shifted(BOX, 3)
    found = detections([(BOX, 0, 0.9), (shifted(BOX, 1), 0, 0.8)])
    real = truth([(BOX, 0), (near, 0)])
    assert precision(found, real) == pytest.approx(1 / 2)
    assert precision(found, real, "coco50") == pytest.approx(1)


def test_difficult_objects_are_neither_required_nor_wrong():
    found = detections([(ELSEWHERE, 0, 0.9), (ELSEWHERE, 0, 0.8), (BOX, 0, 0.7)])
    real = truth([(BOX, 0), (ELSEWHERE, 0, 1)])
    for metric in METRICS:
        assert precision(found, real, metric) == pytest.approx(1)
    for metric in METRICS:
        assert np.isnan(precision(found, truth([(ELSEWHERE, 0, 1)]), metric)).all()


def test_a_class_without_objects_has_no_precision():
    found = detections([(BOX, 0, 0.9), (BOX, 1, 0.8)])
    real = truth([(BOX, 0)], [])
    for metric in METRICS:
        two = detections([(BOX, 0, 0.9), (BOX, 1, 0.8)], [])
        np.testing.assert_array_equal(precision(two, real, metric, 3), [1, np.nan, np.nan])
        np.testing.assert_array_equal(precision(found, truth([(BOX, 2)]), metric, 3)[2], 0)


def test_boxes_of_another_class_or_image_do_not_hit():
    found = detections([(BOX, 1, 0.9)], [(BOX, 0, 0.9)])
    real = truth([(BOX, 0)], [(BOX, 1)])
    for metric in METRICS:
        np.testing.assert_array_equal(precision(found, real, metric, 2), [0, 0])


def test_voc_wants_more_than_half_and_coco_half():
    """Half of the box is half of what the two cover together, where one is within the other."""
    found = detections([((10, 10, 20, 15), 0, 0.9)])
    real = truth([(BOX, 0)])
    assert [precision(found, real, metric)[0] for metric in METRICS] == [0, 0, 1, 0.1]


def test_padding_is_never_looked_at():
    found, real = detections([(BOX, 0, 0.9)]), truth([(BOX, 0)])
    more = Detections(*(np.concatenate([x, x], axis=1) for x in found))
    more = more._replace(valid=np.array([[True, False]]), scores=np.array([[0.5, np.inf]]))
    many = Truth(*(np.concatenate([x, x], axis=1) for x in real))
    many = many._replace(valid=np.array([[True, False]]))
    for metric in METRICS:
        assert precision(more, many, metric) == 1


def test_nothing_found_is_zero():
    for metric in METRICS:
        assert precision(detections([]), truth([(BOX, 0)]), metric) == 0


def test_an_unknown_metric_gets_the_known_ones():
    with pytest.raises(InputError, match=r"unknown metric 'voc': .*voc2007.* or voc2012"):
        precision(detections([]), truth([]), "voc")


def test_overlap_is_the_devkits_with_one_added():
    """The devkit's xmin and ymin count from 1 and its xmax and ymax are the last pixels."""
    random = np.random.default_rng(0)
    ours = np.add(np.sort(random.integers(0, 30, (2, 40, 2, 2)), axis=2), [[0, 0], [1, 1]])
    one, other = (boxes.reshape(-1, 4) for boxes in ours)
    voc_one, voc_other = (np.add(boxes, [1, 1, 0, 0]) for boxes in (one, other))
    for a, b, overlap in zip(voc_one, voc_other, np.diag(overlaps(one, other)), strict=True):
        iw = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
        ih = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
        areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        assert overlap == pytest.approx(iw * ih / (sum(areas) - iw * ih))


# Properties


@st.composite
def sets(draw, distinct=True, crowds=True):
    """Up to six images with objects of three classes, and boxes near some of them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, most = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    low = random.uniform(0, 40, (count, most, 2))
    boxes = np.concatenate([low, low + random.uniform(5, 30, low.shape)], axis=-1)
    labels = random.integers(0, 3, (count, most))
    real = Truth(
        boxes, labels, random.random((count, most)) < 0.7, random.random((count, most)) < 0.2
    )
    if not crowds:
        real = real._replace(difficult=np.zeros_like(real.difficult))
    repeated = np.repeat(boxes, 3, axis=1) + random.uniform(-2, 2, (count, 3 * most, 4))
    scores = random.permutation(count * 3 * most).reshape(count, -1) / (count * 3 * most)
    if not distinct:
        scores = np.round(scores, 1)
    given_labels = np.where(
        random.random(scores.shape) < 0.8, np.repeat(labels, 3, axis=1), random.integers(0, 3)
    )
    return Detections(repeated, given_labels, scores, random.random(scores.shape) < 0.8), real


few = settings(max_examples=25, deadline=None)
of_metric = pytest.mark.parametrize("metric", METRICS)


@of_metric
@few
@given(case=sets(distinct=False), seed=st.integers(0, 99))
def test_the_order_of_the_images_does_not_matter(metric, case, seed):
    found, real = case
    order = np.random.default_rng(seed).permutation(len(found.boxes))
    other = precision(
        Detections(*(x[order] for x in found)), Truth(*(x[order] for x in real)), metric, 3
    )
    np.testing.assert_allclose(other, precision(found, real, metric, 3), rtol=1e-12)


@of_metric
@few
@given(case=sets(distinct=False))
def test_only_the_order_of_the_scores_matters(metric, case):
    found, real = case
    other = found._replace(scores=np.exp(3 * found.scores) - 7)
    np.testing.assert_array_equal(
        precision(other, real, metric, 3), precision(found, real, metric, 3)
    )


@of_metric
@few
@given(case=sets(), seed=st.integers(0, 99))
def test_perfect_detections_are_worth_one(metric, case, seed):
    """Also with difficult objects among them, found or not."""
    _, real = case
    random = np.random.default_rng(seed)
    shown = real.valid & (~real.difficult | (random.random(real.valid.shape) < 0.5))
    # Two objects of one class may be as near to each other as to themselves in VOC's eyes.
    found = Detections(real.boxes, real.labels, random.random(shown.shape), shown)
    values = precision(found, real, metric, 3)
    required = [(real.labels == k) & real.valid & ~real.difficult for k in range(3)]
    for value, own in zip(values, required, strict=True):
        assert np.isnan(value) if not own.any() else value == pytest.approx(1)


# Against pycocotools


def pycocotools_precisions(found, real):
    """AP at an overlap of 0.5, and over all, of each class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def width_and_height(box):
        left, top, right, bottom = map(float, box)
        return [left, top, right - left, bottom - top]

    def rows(boxes, valid, fields):
        return [
            {
                "image_id": int(image) + 1,
                "category_id": int(fields["labels"][image, place]) + 1,
                "bbox": width_and_height(boxes[image, place]),
                **{key: float(fields[key][image, place]) for key in fields if key != "labels"},
            }
            for image, place in np.argwhere(valid)
        ]

    annotations = rows(real.boxes, real.valid, {"labels": real.labels, "iscrowd": real.difficult})
    for number, row in enumerate(annotations, 1):
        row |= {
            "id": number,
            "area": row["bbox"][2] * row["bbox"][3],
            "iscrowd": int(row["iscrowd"]),
        }
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": image + 1} for image in range(len(found.boxes))],
            "categories": [{"id": k + 1} for k in range(3)],
            "annotations": annotations,
        }
        reference.createIndex()
        results = rows(found.boxes, found.valid, {"labels": found.labels, "score": found.scores})
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    values = evaluation.eval["precision"][:, :, :, 0, 2].mean(axis=1)
    return np.where(values < 0, np.nan, values)


@few
@given(case=sets())
def test_coco_is_pycocotools(case):
    found, real = case
    found.valid[0, 0] = True  # pycocotools reads no empty list of results
    expected = pycocotools_precisions(found, real)
    np.testing.assert_allclose(precision(found, real, "coco50", 3), expected[0], atol=1e-9)
    np.testing.assert_allclose(precision(found, real, "coco", 3), expected.mean(0), atol=1e-9)


def test_coco_looks_at_a_hundred_boxes_of_a_class():
    found = [(ELSEWHERE, 0, 1 - i / 200) for i in range(100)]
    real = truth([(BOX, 0)])
    for last, value in ((99, 1 / 100), (100, 0)):
        boxes = detections([*found[:last], (BOX, 0, 0.1)])
        assert precision(boxes, real, "coco50") == pytest.approx(value)
        np.testing.assert_allclose(pycocotools_precisions(boxes, real)[0, 0], value)
        assert precision(boxes, real, "voc2012") == pytest.approx(1 / (last + 1))
