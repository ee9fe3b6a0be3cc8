"""From the name of a checkpoint to a network that works."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flaxattn.errors import InputError
from flaxattn.models.graft import graft
from flaxattn.models.placement import Slot
from flaxattn.weights.kinds import preprocessing_of, stated_model
from flaxattn.weights.pretrained import load_pretrained
from flaxattn.weights.sources import fetch


class Network(NamedTuple):
    """A model, its variables, and what an image goes through before it.

    Fields:
        model: a classifier, a detector or a segmenter, to be called as those that `create_model`,
            `create_detector` and `create_segmenter` return.
        variables: its own, as NumPy arrays.
        preprocessing: `Preprocessing`, `DetectorPreprocessing` or `SegmenterPreprocessing`.
    """

    model: Any
    variables: Mapping[str, Any]
    preprocessing: Any


def from_pretrained(
    source: str | Path,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    attention: Slot = None,
    conv: Slot = None,
    context: Slot = None,
    seed: int = 0,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    **fields: Any,
) -> Network:
    """The network of a checkpoint whose config names its architecture, as timm's do, ready to use.

        model, variables, preprocessing = flaxattn.from_pretrained("timm/resnet50.a1_in1k")
        logits = model.apply(variables, preprocessing("cat.jpg")[None])

    Fine-tuning begins with another head, and perhaps with attention, which changes nothing at
    first (`graft`):

        from_pretrained("timm/resnet50.a1_in1k", num_classes=10, attention="se")

    The work directory of a complete run of train.py is such a checkpoint too, whether it classifies
    images, finds objects (`detect`) or gives each pixel a class (`segment`). Of other files say
    what they are of:

        from_pretrained("fcn_resnet50_coco-1167a1af.pth", architecture="fcn_resnet50")

    Args:
        source: a Hugging Face repository, a directory or a file, as `weights.fetch` takes it.
        architecture: a name of MODELS, DETECTORS or SEGMENTERS; None for the config's.
        num_classes: width of the head, of detectors with the background; None for the checkpoint's.
            With another number it is new.
        attention, conv, context: grafted into the network, in any form that `graft` takes;
            detectors and segmenters have no slot but attention.
        seed: of all that is new.
        revision, cache_dir, offline: see `weights.fetch`.
        fields: the model's other fields, such as dtype and output_stride (`create_model`,
            `create_detector`, `create_segmenter`).

    torchvision's weights of fasterrcnn_resnet50_fpn are known by the file's checksum, and get the
    epsilon of 0 that they were trained with.

    Raises InputError for a checkpoint whose architecture nothing names, for an unknown one, and for
    what `fetch`, `load`, `graft` and the maker of the model refuse.
    """
    checkpoint = fetch(source, revision=revision, cache_dir=cache_dir, offline=offline)
    if architecture is None and checkpoint.architecture is None:
        raise InputError(
            f"no config names the architecture of {source}: pass architecture=..., such as "
            f"'resnet50'."
        )
    preprocessing = preprocessing_of(checkpoint, architecture)
    shape = (1, *preprocessing.input_size)
    model: Any = stated_model(checkpoint, architecture, **fields)
    new: tuple[str, ...] = ()
    if num_classes not in (None, model.num_classes):
        model, new = model.clone(num_classes=num_classes), ("head",)
    variables = load_pretrained(model, checkpoint, shape, allow_new=new, seed=seed).variables
    slots = {"attention": attention, "conv": conv, "context": context}
    if any(slot is not None for slot in slots.values()):
        model, variables = graft(model, variables, input_shape=shape, seed=seed, **slots)
    return Network(model, variables, preprocessing)
