"""From the name of a checkpoint to a network that works."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from flaxattn.errors import InputError
from flaxattn.images.preprocessing import Preprocessing
from flaxattn.models.graft import graft
from flaxattn.models.placement import Slot
from flaxattn.weights.architecture import stated_model
from flaxattn.weights.pretrained import load_pretrained
from flaxattn.weights.sources import fetch


class Network(NamedTuple):
    """A model, its variables, and what an image goes through before it."""

    model: nn.Module
    variables: Mapping[str, Any]
    preprocessing: Preprocessing


def from_pretrained(
    source: str | Path,
    *,
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

    The work directory of a complete run of train.py is such a checkpoint too.

    Args:
        source: a Hugging Face repository, a directory or a file, as `weights.fetch` takes it.
        num_classes: width of the head; None for the checkpoint's. With another number it is new.
        attention, conv, context: grafted into the network, in any form that `graft` takes.
        seed: of all that is new.
        revision, cache_dir, offline: see `weights.fetch`.
        fields: the model's other fields, such as dtype and output_stride (`create_model`).

    Raises InputError for a checkpoint without an architecture in its config, for one that is not in
    MODELS, and for what `fetch`, `load`, `create_model` and `graft` refuse.
    """
    checkpoint = fetch(source, revision=revision, cache_dir=cache_dir, offline=offline)
    if checkpoint.architecture is None:
        raise InputError(
            f"no config names the architecture of {source}: make the model with create_model, and "
            f"load these weights with flaxattn.weights.load."
        )
    classes = checkpoint.num_classes
    preprocessing = Preprocessing.of(checkpoint.config)
    shape = (1, *preprocessing.input_size)
    model = stated_model(
        checkpoint,
        num_classes=classes if num_classes is None else num_classes,
        **fields,
    )
    new = () if num_classes in (None, classes) else ("head",)
    variables = load_pretrained(model, checkpoint, shape, allow_new=new, seed=seed).variables
    slots = {"attention": attention, "conv": conv, "context": context}
    if any(slot is not None for slot in slots.values()):
        model, variables = graft(model, variables, input_shape=shape, seed=seed, **slots)
    return Network(model, variables, preprocessing)
