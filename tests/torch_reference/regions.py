"""The two operators of torchvision's detectors that it has in C++ alone: NMS and RoIAlign."""

import torch


def nms(boxes, scores, iou_threshold):
    """Indices of the boxes that greedy suppression keeps, the best first."""
    order = scores.sort(descending=True, stable=True)[1]
    boxes = boxes[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for i in range(len(boxes)):
        if not left[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[i, :2], boxes[:, :2])
        sides = (torch.minimum(boxes[i, 2:], boxes[:, 2:]) - low).clamp(min=0)
        both = sides[:, 0] * sides[:, 1]
        left &= ~(both / (areas[i] + areas - both) > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.int64)]


def roi_align(x, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    """(N, C, H, W) maps and (K, 5) boxes -> (K, C, pooled_height, pooled_width).

    torchvision's own fallback in Python lacks the rule that a sample more than one position outside
    counts as 0, which its kernels have.
    """
    assert sampling_ratio > 0
    assert not aligned
    x1, y1, x2, y2 = (rois[:, i] * spatial_scale for i in range(1, 5))
    rows = _neighbours(y1, y2, x.shape[2], pooled_height, sampling_ratio)
    columns = _neighbours(x1, x2, x.shape[3], pooled_width, sampling_ratio)
    image = rois[:, 0].long()[:, None, None]
    total = torch.zeros((), dtype=x.dtype)
    for row, row_weight in rows:
        for column, column_weight in columns:
            values = x[image, :, row[:, :, None], column[:, None, :]]  # (K, rows, columns, C)
            weights = row_weight[:, :, None] * column_weight[:, None, :]
            total = total + values * weights[..., None]
    bins = total.unflatten(2, (pooled_width, -1)).unflatten(1, (pooled_height, -1))
    return bins.mean(dim=(2, 4)).permute(0, 3, 1, 2)


def _neighbours(start, stop, length, bins, ratio):
    """Positions below and above each sample along an axis, and their weights: (K, bins * ratio)."""
    size = (stop - start).clamp(min=1) / bins
    steps = torch.arange(bins * ratio)
    offset = steps // ratio + (steps % ratio + 0.5) / ratio
    sample = start[:, None] + offset[None] * size[:, None]
    inside = ((sample >= -1) & (sample <= length)).to(sample.dtype)
    sample = sample.clamp(0, length - 1)
    lower = sample.floor()
    upper = (lower + 1).clamp(max=length - 1)
    part = sample - lower
    return (lower.long(), inside * (1 - part)), (upper.long(), inside * part)
