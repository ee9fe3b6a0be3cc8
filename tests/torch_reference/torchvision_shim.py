"""torchvision and timm beside a torch without CUDA: `from ...torchvision_shim import timm`.

torchvision's wheels of this version are built for CUDA. Their library of operators does not load
beside the CPU build of torch, and torchvision then stops at registering a fake of an operator that
was never declared. Declaring the operators is enough for everything that does not call them.
"""

from importlib.metadata import distribution

import torch


def _declare_operators():
    try:
        torch.ops.load_library(str(distribution("torchvision").locate_file("torchvision/_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


# The declarations live as long as this object.
_library = _declare_operators()

import timm  # noqa: E402
import timm.layers  # noqa: E402
import torchvision  # noqa: E402

__all__ = ["timm", "torchvision"]
