"""What a network is trained for: the loss, the metrics, the prediction."""

from flaxattn.tasks.classification import Classification
from flaxattn.tasks.detection import Detection
from flaxattn.tasks.multilabel import MultiLabel
from flaxattn.tasks.segmentation import Segmentation
from flaxattn.tasks.task import Task

__all__ = ["Classification", "Detection", "MultiLabel", "Segmentation", "Task"]
