"""PyTorch state dicts to Flax variables and back, bit for bit, without PyTorch."""

from flaxattn.weights.convert import abstract_variables, load, to_torch
from flaxattn.weights.files import read

__all__ = ["abstract_variables", "load", "read", "to_torch"]
