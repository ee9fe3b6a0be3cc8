"""A JAX program with its maps stored channels first, as ONNX and most runtimes want them.

A program over (N, H, W, C) becomes one over (N, C, H, W) that transposes no map: each array
keeps a note of which of its axes is stored where (`values`), each operation is written for the axes
as they are stored (`rules`), and what is known beforehand, the weights above all, is computed and
turned here. Only what merges axes that do not lie together turns an array.
"""

from flaxattn.export.channels_first.program import channels_first
from flaxattn.export.channels_first.values import maps_order

__all__ = ["channels_first", "maps_order"]
