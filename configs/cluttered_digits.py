"""Which digit stands whole among pieces of others: scikit-learn's, at any size and place.

python train.py --config configs/cluttered_digits.py:se --workdir runs/cluttered
python -m flaxattn compare --config configs/cluttered_digits.py \\
    --attention none,se,eca,cbam,sca --seeds 5

For comparisons, which need a task that is not solved: test pictures are made of digits that no
training picture has. That comparison takes 21 minutes on two CPU cores and shows no difference:
means of 85.6 to 86.0 %, within a seed 0.2 to 0.4 points below no attention, where less than 2.4 to
4.4 points could not have shown (docs/compare.md).

The argument is as in configs/digits.py, or a part of sca: sca_channel, sca_spatial, or in one stage
alone, as sca_stage1.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import digits
from flaxattn.errors import unknown
from flaxattn.train.config import option

SLOTS: dict[str, dict[str, Any]] = {
    **digits.SLOTS,
    "sca_channel": {"attention": {"name": "sca_channel", **digits.BRANCH}},
    # Its channel gate is there without effect, so it counts among the costs.
    "sca_spatial": {"attention": {"name": "sca", "beta": 0.0, **digits.BRANCH}},
    **{
        f"sca_stage{stage}": {"attention": {"name": "sca", **digits.BRANCH, "stages": (stage,)}}
        for stage in digits.BRANCH["stages"]
    },
}


def get_config(arg: str = "se") -> ConfigDict:
    name, debug = option(arg, "se")
    if name not in SLOTS:
        raise unknown("experiment with cluttered digits", name, SLOTS)
    config = digits.get_config("none")
    config.model = ConfigDict(
        {"name": "resnet10", "stage_sizes": (1, 1, 1), "width": 16, "stem": "deep"} | SLOTS[name]
    )
    config.batch_size = 32
    config.eval_batch_size = 200
    config.epochs = 3.0

    config.data.name = "cluttered_digits"
    config.data.image_size = 32
    config.data.mean = (0.126,)
    config.data.std = (0.261,)
    config.data.eval_resize = 32
    config.data.augment.crop = "center"  # they lie anywhere as it is

    config.optim.name = "adamw"
    config.optim.learning_rate = 5e-3
    config.optim.nesterov = False
    config.optim.weight_decay = 0.01
    config.optim.warmup_epochs = 0.5

    config.log_every = 125
    config.eval_every = 3.0
    config.checkpoint_every = 250
    if debug:
        config.epochs = 0.04
        config.optim.warmup_epochs = 0.01
        config.log_every = 2
        config.checkpoint_every = 4
    return config
