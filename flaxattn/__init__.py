"""Attention mechanisms of convolutional networks for JAX/Flax, each proven against PyTorch."""

from flaxattn import weights
from flaxattn.attention import ATTENTION, create_attention
from flaxattn.errors import InputError
from flaxattn.layers.conv import Conv
from flaxattn.layers.initialise import initialise
from flaxattn.layers.norm import BatchNorm
from flaxattn.models import MODELS, create_model
from flaxattn.models.graft import graft
from flaxattn.prediction import Detection, Prediction, detect, predict, segment
from flaxattn.weights import from_pretrained

__version__ = "0.1.0"

__all__ = [
    "ATTENTION",
    "MODELS",
    "BatchNorm",
    "Conv",
    "Detection",
    "InputError",
    "Prediction",
    "__version__",
    "create_attention",
    "create_model",
    "detect",
    "from_pretrained",
    "graft",
    "initialise",
    "predict",
    "segment",
    "weights",
]
