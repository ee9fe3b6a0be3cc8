"""Looking at mechanisms and models from outside."""

from flaxattn.inspect.attention_maps import attention_maps
from flaxattn.inspect.cam import METHODS, class_activation_maps, heat_maps
from flaxattn.inspect.cam_picture import overlay

__all__ = ["METHODS", "attention_maps", "class_activation_maps", "heat_maps", "overlay"]
