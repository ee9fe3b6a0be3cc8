"""torchvision and timm beside a torch without CUDA: `from ...torchvision_shim import timm`.

torchvision's wheels of this version are built for CUDA. Their library of operators does not load
beside the CPU build of torch, and torchvision then stops at registering a fake of an operator that
was never declared. Declaring the operators is enough for everything that does not call them; the
two that detectors call are those of `regions`.
"""

import sys
from importlib.metadata import distribution

import torch

from tests.torch_reference import regions


def _declare_operators():
    try:
        torch.ops.load_library(str(distribution("torchvision").locate_file("torchvision/_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", regions.nms, "CPU")
        return library
    return None


# The declarations live as long as this object.
_library = _declare_operators()

import timm  # noqa: E402
import timm.layers  # noqa: E402
import torchvision  # noqa: E402

if _library is not None:
    torchvision.extension._has_ops = lambda: True  # NMS asks for it
    vars(sys.modules["torchvision.ops.roi_align"])["_roi_align"] = regions.roi_align

__all__ = ["timm", "torchvision"]
