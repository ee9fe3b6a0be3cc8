"""PyTorch state dicts to Flax variables and back, bit for bit, without PyTorch."""

from flaxattn.images.detector_preprocessing import DetectorPreprocessing
from flaxattn.images.preprocessing import Preprocessing, class_names
from flaxattn.images.segmenter_preprocessing import SegmenterPreprocessing
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.weights.convert import Variables, to_torch
from flaxattn.weights.files import read, write
from flaxattn.weights.naming import Naming
from flaxattn.weights.network import Network, from_pretrained
from flaxattn.weights.opened import Source
from flaxattn.weights.pretrained import Pretrained, load, load_pretrained
from flaxattn.weights.sources import Checkpoint, fetch

__all__ = [
    "Checkpoint",
    "DetectorPreprocessing",
    "Naming",
    "Network",
    "Preprocessing",
    "Pretrained",
    "SegmenterPreprocessing",
    "Source",
    "Variables",
    "abstract_variables",
    "class_names",
    "fetch",
    "from_pretrained",
    "load",
    "load_pretrained",
    "read",
    "to_torch",
    "write",
]
