"""What a network is trained for: the loss, the metrics, the prediction."""

from flaxattn.tasks.classification import Classification

__all__ = ["Classification"]
