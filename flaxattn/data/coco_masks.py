"""What COCO's segmentations cover, decoded by pycocotools."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from flaxattn.errors import InputError
from flaxattn.extras import require_extra


def pycocotools() -> ModuleType:
    """Its module mask, imported with the first masks: boxes do without."""
    require_extra("coco", doing="reading COCO's masks")
    from pycocotools import mask

    return mask


def covered(segmentation: Any, shape: tuple[int, int], *, name: str) -> np.ndarray:
    """The pixels of an object, bool (H, W): those in any of its polygons, or in its run lengths.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...], or run lengths {"size": [H, W],
            "counts": ...}, a list or compressed to a string; column by column, the first of what is
            not covered.
        shape: (H, W) of the image.
        name: what to call it in an error.

    Raises InputError for anything else: pycocotools would return pixels of no meaning, or crash.
    """
    coding = pycocotools()
    if _are_polygons(segmentation, shape):
        runs = coding.merge(coding.frPyObjects(segmentation, *shape))
    elif _are_runs(segmentation, shape):
        runs = _compressed(segmentation)
    else:
        raise InputError(
            f"{name} is wrong: for an image of {shape[0]}x{shape[1]} pixels (height by width) "
            f"write polygons [[x, y, x, y, ...], ...] of three corners or more, or run lengths "
            f"with size={list(shape)} and counts of all its pixels."
        )
    return coding.decode(runs).astype(bool)


def _are_polygons(segmentation: Any, shape: tuple[int, int]) -> bool:
    # Corners may be outside, but pycocotools walks from each to the next.
    farthest = 2 * max(shape)
    return (
        isinstance(segmentation, list)
        and len(segmentation) > 0
        and all(
            isinstance(corners, list)
            and len(corners) >= 6
            and len(corners) % 2 == 0
            and all(isinstance(x, int | float) and abs(x) <= farthest for x in corners)
            for corners in segmentation
        )
    )


def _are_runs(segmentation: Any, shape: tuple[int, int]) -> bool:
    """Whether these are run lengths of as many pixels as the image has, no more and no fewer."""
    if not isinstance(segmentation, Mapping) or segmentation.get("size") != list(shape):
        return False
    pixels = shape[0] * shape[1]
    return _fit(segmentation, pixels) and not _fit(segmentation, pixels - 1)


def _fit(segmentation: Mapping[str, Any], pixels: int) -> bool:
    """pycocotools refuses runs that are too long, and takes those that are too short."""
    try:
        pycocotools().decode(_compressed({**segmentation, "size": [pixels, 1]}))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return False
    return True


def _compressed(segmentation: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(segmentation["counts"], list):
        return pycocotools().frPyObjects(segmentation, *segmentation["size"])
    return segmentation
