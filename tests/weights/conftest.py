import pytest

from flaxattn.models import MODELS
from flaxattn.weights import architecture

FEW = ("resnet10", "resnet18", "resnet34", "resnet50")


@pytest.fixture(autouse=True)
def few_models(monkeypatch):
    """What errors compare a checkpoint with, and all the time that they need for it."""
    monkeypatch.setattr(architecture, "MODELS", {name: MODELS[name] for name in FEW})
    monkeypatch.setattr(architecture, "_SECONDS", 600)
