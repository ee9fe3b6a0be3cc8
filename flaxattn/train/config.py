"""The fields of an experiment, with what each means; configs/ fills them in."""

from ml_collections import ConfigDict

from flaxattn.errors import InputError


def base_config() -> ConfigDict:
    """Every field that a run reads. Steps are optimiser steps; epochs are passes over the data."""
    config = ConfigDict()
    config.seed = 0
    # A name of flaxattn.MODELS and its fields: attention, conv, context, stem, width, ...
    config.model = ConfigDict({"name": "resnet50"})
    # What convolutions compute in; parameters, statistics, gates and losses stay float32.
    config.dtype = "float32"

    config.batch_size = 256  # of all devices and processes together
    config.eval_batch_size = 256
    config.epochs = 90.0

    config.data = ConfigDict()
    config.data.source = "tfds"  # or "folder": data_dir/split/class/image.jpg
    config.data.name = "imagenet2012"
    config.data.data_dir = ""  # "" is TFDS's own
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.workers = 0  # processes that decode; 0 decodes in threads of this one
    config.data.image_size = 224
    config.data.channels = 3
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.eval_resize = 256  # the shorter side, before the centre is cropped
    config.data.augment = ConfigDict()
    config.data.augment.crop = "resized"  # or "padded", "center"
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
    config.optim.warmup_epochs = 5.0
    config.optim.clip_norm = 0.0  # largest global gradient norm; 0 is off
    config.optim.accumulation = 1  # micro-batches a step
    config.label_smoothing = 0.0
    config.ema_decay = 0.0  # 0 is off

    config.log_every = 100  # steps
    config.eval_every = 1.0  # epochs
    config.checkpoint_every = 1000  # steps
    config.keep_checkpoints = 2
    config.profile = ConfigDict({"start": 0, "steps": 0})  # a window of steps; 0 steps is off
    return config


def option(arg: str | None, default: str) -> tuple[str, bool]:
    """A config's argument "name" or "name,debug" as (name, debug)."""
    name, _, rest = (arg or default).partition(",")
    if rest not in ("", "debug"):
        raise InputError(f"config option {rest!r} is none: write {name} or {name},debug.")
    return name, rest == "debug"
