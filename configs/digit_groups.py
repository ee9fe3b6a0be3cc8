"""Which digits a picture shows: one to four of scikit-learn's at random places in 24 x 24 pixels.

python train.py --config configs/digit_groups.py:se --workdir runs/groups

A multi-label experiment, compared by mean average precision. Test pictures are made of digits that
no training picture has. The argument is as in configs/digits.py.

Test mAP by the command above, two CPU cores: 0.997 after two minutes and ten seconds, and with
seeds 1 and 2 0.997 and 0.998.
"""

from ml_collections import ConfigDict

from configs.digits import SLOTS
from flaxattn.errors import unknown
from flaxattn.train.config import base_config, option


def get_config(arg: str = "se") -> ConfigDict:
    name, debug = option(arg, "se")
    if name not in SLOTS:
        raise unknown("digit groups experiment", name, SLOTS)
    config = base_config()
    config.task = "multilabel"
    config.model = ConfigDict(
        {"name": "resnet10", "stage_sizes": (1, 1, 1), "width": 16, "stem": "small"} | SLOTS[name]
    )
    config.batch_size = 64
    config.eval_batch_size = 100
    config.epochs = 8.0

    config.data.name = "digit_groups"
    config.data.eval_split = "test"
    config.data.image_size = 24
    config.data.channels = 1
    config.data.mean = (0.086,)
    config.data.std = (0.242,)
    config.data.eval_resize = 24
    config.data.augment.crop = "padded"
    config.data.augment.padding = 2
    config.data.augment.flip = False  # a mirrored digit is none

    config.optim.name = "adamw"
    config.optim.learning_rate = 5e-3
    config.optim.weight_decay = 0.01
    config.optim.warmup_epochs = 1.0
    config.ema_decay = 0.99

    config.log_every = 31
    config.eval_every = 2.0
    config.checkpoint_every = 124
    if debug:
        config.model.width = 8
        config.epochs = 0.1
        config.optim.warmup_epochs = 0.02
        config.log_every = 2
        config.checkpoint_every = 4
    return config
