"""Models for elsewhere: StableHLO here, ONNX in `flaxattn.export.onnx`."""

from flaxattn.export.stablehlo import to_stablehlo

__all__ = ["to_stablehlo"]
