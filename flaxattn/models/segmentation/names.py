"""What the sources of weights call the parts of a segmentation network."""

from typing import NamedTuple

from flaxattn.attention.mechanism import Renames


class PartNames(NamedTuple):
    """A source's names of our submodules; "" where their own submodules stand at the top.

    Fields:
        backbone, classifier, aux_classifier: the submodules.
        stem: renames of the layers of a deep stem, where they are not the backbone's own.
    """

    backbone: str
    classifier: str
    aux_classifier: str
    stem: Renames = ()


def _deep_stem(*foreign: str) -> Renames:
    ours = ("conv1_0", "conv1_1", "conv1_3", "conv1_4", "conv1_6", "bn1")
    return tuple((theirs, f"backbone.{name}") for theirs, name in zip(foreign, ours, strict=True))


SOURCES: dict[str, PartNames] = {
    "torchvision": PartNames("backbone", "classifier", "aux_classifier"),
    "semseg": PartNames(
        "",
        "",
        "aux",
        _deep_stem("layer0.0", "layer0.1", "layer0.3", "layer0.4", "layer0.6", "layer0.7"),
    ),
    "ccnet": PartNames(
        "", "head", "dsn", _deep_stem("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    ),
    "danet": PartNames("pretrained", "head", "auxlayer"),
}
