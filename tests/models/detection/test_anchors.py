"""Anchors against torchvision's."""

import jax.numpy as jnp
import numpy as np
import torch

from flaxattn.models.detection.anchors import anchors
from tests.torch_reference.torchvision_shim import torchvision

detection = torchvision.models.detection


def test_anchors_are_torchvisions_where_steps_are_odd_too():
    canvas, maps = (800, 96), ((100, 12), (25, 3), (13, 2))
    sizes, ratios = ((32, 40, 51), (64, 80, 101), (128, 161, 203)), (0.5, 1.0, 2.0)
    make = detection.rpn.AnchorGenerator(sizes, (ratios,) * 3)
    images = detection.image_list.ImageList(torch.zeros(1, 3, *canvas), [canvas])
    (expected,) = make(images, [torch.zeros(1, 1, *shape) for shape in maps])
    found = anchors(maps, canvas, sizes=sizes, aspect_ratios=ratios, dtype=jnp.float32)
    np.testing.assert_array_equal(jnp.concatenate(found), expected)
    assert [len(level) for level in found] == [9 * h * w for h, w in maps]
    assert found[2][9 * 2, 1] - found[2][0, 1] == 800 // 13 == 61
