"""The fields of an experiment, with what each means; configs/ fills them in."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxattn.errors import InputError, unknown
from flaxattn.layers.fields import require_fields, require_type


def base_config() -> ConfigDict:
    """Every field that a run reads. Steps are optimiser steps; epochs are passes over the data."""
    config = ConfigDict()
    config.seed = 0
    # One class an image; or "multilabel": any number of them; "segmentation": one a pixel;
    # "detection": boxes.
    config.task = "classification"
    # A name of flaxattn.MODELS and its fields: attention, conv, context, stem, width, ...; for
    # segmentation and detection the arguments of create_segmenter and create_detector.
    config.model = ConfigDict({"name": "resnet50"})
    config.init = ConfigDict()  # what training starts from
    config.init.weights = ""  # a file, directory or Hugging Face repository; "": random numbers
    config.init.revision = ""  # of a repository: branch, tag or commit
    config.init.naming = ""  # of the weights' tensors, such as "timm"; "" finds it
    config.init.prefix = ""  # take those below it alone, such as "backbone." of a segmenter
    config.init.allow_new = ()  # what they may lack: "head", "attention"
    config.init.graft = ConfigDict()  # attention, conv, context: see flaxattn.graft
    # In which other parts learn, at other rates, as flaxattn.train.phases.make_phases reads them:
    # ({"start": 0, "train": ("attention", "head"), "learning_rate": 0.01}, {"start": 5, ...}).
    config.phases = ()
    # What convolutions compute in; parameters, statistics, gates and losses stay float32.
    config.dtype = "float32"

    config.batch_size = 256  # of all devices and processes together
    config.eval_batch_size = 256
    config.epochs = 90.0

    config.data = ConfigDict()
    config.data.source = "tfds"  # or "folder": data_dir/split/class/image.jpg; "voc", "coco"
    config.data.name = "imagenet2012"
    config.data.data_dir = ""  # "" is TFDS's own
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.workers = 0  # processes that decode; 0 decodes in threads of this one
    config.data.image_size = 224
    config.data.channels = 3
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    # The shorter side, before the centre is cropped; of images with masks 0 leaves it as it is.
    config.data.eval_resize = 256
    config.data.crop_mode = "center"  # or "squash": both sides are resized, and nothing is cut off
    # Of images with masks (in evaluation) or objects: height and width that hold the largest.
    config.data.canvas = (512, 512)
    # Of images with objects: the shorter side (of several, one is drawn for each training image),
    # the most of the longer one, and how many objects an image may have.
    config.data.min_size = (800,)
    config.data.max_size = 1333
    config.data.max_objects = 64
    config.data.metric = "voc2012"  # of boxes: "voc2012", "voc2007", "coco50" or "coco"
    config.data.augment = ConfigDict()
    config.data.augment.crop = "resized"  # or "padded", "center"
    # Of the area that is cut out; of images with masks, how much they are resized.
    config.data.augment.scale = (0.08, 1.0)
    config.data.augment.ratio = (3 / 4, 4 / 3)
    config.data.augment.padding = 0
    config.data.augment.flip = True
    config.data.augment.randaugment_ops = 0
    config.data.augment.randaugment_magnitude = 9
    config.data.augment.erasing = 0.0  # probability
    config.mixup_alpha = 0.0
    config.cutmix_alpha = 0.0

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # or "adamw", "lamb"
    config.optim.learning_rate = 0.1
    config.optim.momentum = 0.9
    config.optim.nesterov = False
    config.optim.weight_decay = 1e-4  # on kernels only
    config.optim.warmup_epochs = 5.0  # of the run, or of each phase
    config.optim.decay = "cosine"  # or "poly"; "none": the learning rate stays
    config.optim.clip_norm = 0.0  # largest global gradient norm; 0 is off
    config.optim.accumulation = 1  # micro-batches a step
    config.label_smoothing = 0.0
    config.aux_weight = 0.5  # of the loss of a segmenter's auxiliary head
    config.ema_decay = 0.0  # 0 is off

    config.log_every = 100  # steps
    config.eval_every = 1.0  # epochs
    config.checkpoint_every = 1000  # steps
    config.keep_checkpoints = 2
    config.pictures = 8  # test images that each evaluation draws with what it finds; 0 is off
    config.profile = ConfigDict({"start": 0, "steps": 0})  # a window of steps; 0 steps is off
    return config


# Least values of the fields that count something.
_LEAST = {
    "seed": 0,
    "batch_size": 1,
    "eval_batch_size": 1,
    "data.workers": 0,
    "data.image_size": 1,
    "data.channels": 1,
    "data.eval_resize": 0,
    "data.max_size": 1,
    "data.max_objects": 1,
    "optim.accumulation": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "pictures": 0,
    "profile.start": 0,
    "profile.steps": 0,
}
_ABOVE_ZERO = ("epochs", "eval_every", "optim.learning_rate")
_FRACTIONS = ("label_smoothing", "ema_decay", "optim.momentum")
_NOT_NEGATIVE = (
    "mixup_alpha",
    "cutmix_alpha",
    "aux_weight",
    "optim.weight_decay",
    "optim.warmup_epochs",
    "optim.clip_norm",
)


_OF_THE_MODEL = ("model", "init.graft")


def require_valid(config: ConfigDict) -> None:
    """InputError for a field that is not `base_config`'s, or not of its kind, and for a number that
    no run can have.

    What stands below `model` and `init.graft` is the model's.
    """
    require_type("config", config, ConfigDict)
    fields = config.to_dict()
    _require_fields(fields, base_config().to_dict())

    def require(name: str, holds: Callable[[float], bool], legal: str) -> None:
        value = functools.reduce(lambda inner, key: inner[key], name.split("."), fields)
        if not holds(value):
            raise InputError(f"{name}={value}: use {legal}.")

    for name, least in _LEAST.items():
        require(name, functools.partial(operator.le, least), f"{least} or more")
    for name in _ABOVE_ZERO:
        require(name, lambda value: value > 0, "a number above 0")
    for name in _FRACTIONS:
        require(name, lambda value: 0 <= value < 1, "a number from 0 to below 1")
    for name in _NOT_NEGATIVE:
        require(name, lambda value: value >= 0, "0 or more")


def _require_fields(fields: dict[str, Any], usual: dict[str, Any], prefix: str = "") -> None:
    """InputError unless `fields` are the usual ones, each of the kind of the usual value."""
    for name in fields:
        if name not in usual:
            raise unknown("config field", prefix + name, (prefix + other for other in usual))
    require_fields(fields, {name: _kind_of(value) for name, value in usual.items()}, prefix)
    for name, value in usual.items():
        if isinstance(value, dict) and prefix + name not in _OF_THE_MODEL:
            _require_fields(fields[name], value, f"{prefix}{name}.")


def _kind_of(value: Any) -> Any:
    if isinstance(value, dict):
        return Mapping
    if isinstance(value, tuple):
        return Sequence[float] if value else Sequence[Any]
    return type(value)


def option(arg: str | None, *defaults: str) -> tuple[Any, ...]:
    """A config's argument, such as "scenes,sca,debug", as its names and whether it ends in "debug".

    defaults: what each name is if the argument is too short to have it.
    """
    words = [word for word in (arg or "").split(",") if word]
    debug = words[-1:] == ["debug"]
    names = words[:-1] if debug else words
    if len(names) > len(defaults):
        legal = ",".join(names[: len(defaults)])
        raise InputError(
            f"config option {names[len(defaults)]!r} is none: write {legal} or {legal},debug."
        )
    return (*names, *defaults[len(names) :], debug)
