"""Boxes float32 (n, 4) that go with an image: left, top, right and bottom edge in pixels."""

import numpy as np


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """The boxes in the mirror image, left to right, of an image this wide."""
    left, top, right, bottom = boxes.T
    return np.stack([width - right, top, width - left, bottom], axis=1).astype(boxes.dtype)


def scale_boxes(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """The boxes in an image that was resized from `size`, (height, width), to `new_size`.

    The ratios are rounded to float32, as in torchvision.
    """
    down, across = np.array(new_size, np.float32) / np.array(size, np.float32)
    return boxes * np.array([across, down, across, down], boxes.dtype)
