"""ImageNet with ResNet-50 and any attention, by the standard recipe of 90 epochs.

python train.py --config configs/imagenet_resnet50.py:se --workdir runs/imagenet_se
python train.py --config configs/imagenet_resnet50.py:se --workdir runs/folder_se \\
    --config.data.source=folder --config.data.data_dir=PATH \\
    --config.data.train_split=train --config.data.eval_split=val

SGD with Nesterov momentum, learning rate 0.1 per 256 images, five epochs of warm-up, cosine decay,
weight decay 1e-4, label smoothing 0.1 (Goyal et al. 2017, arXiv:1706.02677; He et al. 2019,
arXiv:1812.01187). With 256 images a batch, as one host of eight accelerators runs it; for B images
use --config.batch_size=B --config.optim.learning_rate=B/2560.

The first split comes from TFDS's imagenet2012, or, with the flags above, from a folder
PATH/{train,val}/CLASS/IMAGE.JPEG. Not run here to its end: no figure is claimed.

The argument is one of none, se, eca, cbam, spatial, self_attention, sk, sca, sca_lite; ",debug"
behind it shrinks the run to seconds.
"""

from typing import Any

from ml_collections import ConfigDict

from flaxattn.errors import unknown
from flaxattn.train.config import base_config, option

EVERY_BLOCK: dict[str, Any] = {"stages": (1, 2, 3, 4), "blocks": "all"}
BRANCH = {**EVERY_BLOCK, "position": "out"}
SLOTS: dict[str, dict[str, Any]] = {
    "none": {},
    "se": {"attention": {"name": "se", "reduction": 16, **BRANCH}},
    "eca": {"attention": {"name": "eca", **BRANCH}},
    "cbam": {"attention": {"name": "cbam", "reduction": 16, "kernel_size": 7, **BRANCH}},
    "spatial": {"attention": {"name": "spatial", "kernel_size": 7, **BRANCH}},
    "self_attention": {"context": {"name": "self_attention", "stages": (3, 4), "blocks": "last"}},
    "sk": {"conv": {"name": "sk", "variant": "timm", **EVERY_BLOCK}},
    "sca": {"attention": {"name": "sca", **BRANCH}},
    "sca_lite": {"attention": {"name": "sca_lite", **BRANCH}},
}


def get_config(arg: str = "se") -> ConfigDict:
    name, debug = option(arg, "se")
    if name not in SLOTS:
        raise unknown("imagenet experiment", name, SLOTS)
    config = base_config()
    config.model = ConfigDict({"name": "resnet50"} | SLOTS[name])
    config.dtype = "bfloat16"
    config.batch_size = 256
    config.eval_batch_size = 256
    config.epochs = 90.0
    config.data.workers = 16
    config.optim.learning_rate = 0.1
    config.optim.nesterov = True
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 5.0
    config.label_smoothing = 0.1
    if debug:
        config.model.stage_sizes = (1, 1, 1, 1)
        config.model.width = 32
        config.batch_size = 8
        config.eval_batch_size = 8
        config.epochs = 1.0
        config.optim.warmup_epochs = 0.5
        config.data.workers = 0
        config.data.image_size = 32
        config.data.eval_resize = 36
        config.log_every = 1
        config.checkpoint_every = 2
    return config
