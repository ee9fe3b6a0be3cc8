"""PyTorch state dicts to Flax variables and back, bit for bit, without PyTorch."""

from flaxattn.weights.convert import load, to_torch
from flaxattn.weights.files import read

__all__ = ["load", "read", "to_torch"]
