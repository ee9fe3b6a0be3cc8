"""A trained network, and attention in it, fine-tuned on a folder of one's own images.

python train.py --config configs/finetune.py --workdir runs/mine \\
    --weights timm/resnet50.a1_in1k --config.data.data_dir=PATH

The images are PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg (or .jpeg, .png); --weights is a
checkpoint that names its architecture. The argument is the mechanism that is grafted in, "se" if
there is none, as in configs/finetune.py:cbam; "plain" grafts none. ",debug" behind it shrinks the
run to seconds.

Article 3's schedule: what is new learns in epochs 1 to 5 at a rate of 0.01, the last stage too in 6
to 15 at 0.001, and all from 16 on at 0.0001; gradients are clipped to a norm of 2. Afterwards

python -m flaxattn predict IMAGE --weights runs/mine

names the classes of an image.
"""

from ml_collections import ConfigDict

from flaxattn.train.config import base_config, option


def get_config(arg: str = "se") -> ConfigDict:
    mechanism, debug = option(arg, "se")
    config = base_config()
    new: tuple[str, ...] = ("head",)
    if mechanism != "plain":
        config.init.graft = ConfigDict({"attention": {"name": mechanism}})
        new = ("attention", "head")
    config.phases = (
        {"start": 0, "train": new, "learning_rate": 1e-2},
        {"start": 5, "train": (*new, "last_stage"), "learning_rate": 1e-3},
        {"start": 15, "train": "all", "learning_rate": 1e-4},
    )
    config.batch_size = 32
    config.eval_batch_size = 32
    config.epochs = 25.0
    config.data.source = "folder"
    config.data.name = "folder"
    config.data.eval_split = "val"
    config.data.workers = 4
    config.data.augment.scale = (0.35, 1.0)
    config.optim.decay = "none"
    config.optim.warmup_epochs = 0.0
    config.optim.clip_norm = 2.0
    config.log_every = 10
    config.checkpoint_every = 200
    if debug:
        config.phases = tuple(
            {**phase, "start": index} for index, phase in enumerate(config.phases)
        )
        config.batch_size = 8
        config.eval_batch_size = 8
        config.epochs = 3.0
        config.data.workers = 0
        config.data.image_size = 32
        config.data.eval_resize = 36
        config.log_every = 1
    return config
