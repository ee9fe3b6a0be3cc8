"""Handwritten digits (scikit-learn's 1,797 images of 8 x 8) with a small ResNet and any attention.

python train.py --config configs/digits.py:se --workdir runs/se

The argument is one of none, se, eca, cbam, spatial, self_attention, sk, sca, sca_lite;
",debug" behind it shrinks the run to seconds.

Test accuracy by the command above, two CPU cores, of 359: se 358, and with seeds 1 to 4 358 each
time. One seed each: none 358, eca 358, cbam 357, spatial 357, self_attention 358, sk 357, sca 357,
sca_lite 358. They differ by one image: on this set the mechanisms cannot be told apart.
"""

from typing import Any

from ml_collections import ConfigDict

from flaxattn.errors import unknown
from flaxattn.train.config import base_config, option

EVERY_BLOCK: dict[str, Any] = {"stages": (1, 2, 3), "blocks": "all"}
BRANCH = {**EVERY_BLOCK, "position": "out"}
SLOTS: dict[str, dict[str, Any]] = {
    "none": {},
    "se": {"attention": {"name": "se", "reduction": 8, **BRANCH}},
    "eca": {"attention": {"name": "eca", **BRANCH}},
    "cbam": {"attention": {"name": "cbam", "reduction": 8, "kernel_size": 3, **BRANCH}},
    "spatial": {"attention": {"name": "spatial", "kernel_size": 3, **BRANCH}},
    "self_attention": {"context": {"name": "self_attention", "stages": (2, 3), "blocks": "last"}},
    "sk": {"conv": {"name": "sk", "groups": 1, **EVERY_BLOCK}},
    "sca": {"attention": {"name": "sca", **BRANCH}},
    "sca_lite": {"attention": {"name": "sca_lite", **BRANCH}},
}


def get_config(arg: str = "se") -> ConfigDict:
    name, debug = option(arg, "se")
    if name not in SLOTS:
        raise unknown("digits experiment", name, SLOTS)
    config = base_config()
    config.model = ConfigDict(
        {"name": "resnet10", "stage_sizes": (1, 1, 1), "width": 32, "stem": "small"} | SLOTS[name]
    )
    config.batch_size = 64
    config.eval_batch_size = 120
    config.epochs = 30.0

    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.mean = (0.305,)
    config.data.std = (0.376,)
    config.data.eval_resize = 8
    config.data.augment.crop = "padded"
    config.data.augment.padding = 1
    config.data.augment.flip = False  # a mirrored digit is none

    config.optim.learning_rate = 0.1
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = 2.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.99

    config.log_every = 22
    config.eval_every = 5.0
    config.checkpoint_every = 110
    if debug:
        config.model.width = 16
        config.epochs = 0.5
        config.optim.warmup_epochs = 0.1
        config.log_every = 4
        config.checkpoint_every = 8
    return config
