"""What networks see in image files: classes of the whole, objects, or a class for each pixel."""

from flaxattn.prediction.classes import Prediction, predict
from flaxattn.prediction.objects import Detection, detect
from flaxattn.prediction.pixels import segment

__all__ = ["Detection", "Prediction", "detect", "predict", "segment"]
