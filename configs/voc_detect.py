"""Objects in pictures by Faster R-CNN: digit scenes made on the spot, or Pascal VOC 2012.

python train.py --config configs/voc_detect.py:scenes --workdir runs/detect
python train.py --config configs/voc_detect.py:voc2012 --workdir runs/voc_detect \\
    --config.data.data_dir=PATH --config.init.weights=FILE

PATH is the folder VOCdevkit/VOC2012. The argument is "scenes" or "voc2012"; a mechanism behind it
stands at the pyramid's levels, as in "scenes,se", and ",debug" shrinks the run to seconds.

scenes: up to six of scikit-learn's digits of 14 to 48 pixels on a textured ground, 4,000 pictures
to train on and 200 to test (`flaxattn.data.scenes`), and a small detector with norms that learn.
Test mAP at an overlap of 0.5 (VOC 2012's area) by the first command: 0.965, of one seed, in 10 min
17 s on two cores.

voc2012: torchvision's fasterrcnn_resnet50_fpn from its COCO weights, with a new head. Not run here:
no figure is claimed.
"""

from ml_collections import ConfigDict

from flaxattn.errors import unknown
from flaxattn.train.config import base_config, option


def get_config(arg: str = "scenes") -> ConfigDict:
    name, attention, debug = option(arg, "scenes", "none")
    if name not in _SETS:
        raise unknown("detection set", name, _SETS)
    config = base_config()
    config.task = "detection"
    config.data.source = "voc"
    _SETS[name](config)
    if debug:
        config.batch_size = config.eval_batch_size = 8
        config.epochs = 0.016
        config.optim.warmup_epochs = 0.004
        config.log_every = 2
        config.checkpoint_every = 4
    if attention != "none":
        config.model.attention = {"name": attention}
    return config


def _scenes(config: ConfigDict) -> None:
    # As torchvision's second version, whose norms learn, but small.
    config.model = ConfigDict(
        {
            "name": "fasterrcnn_resnet50_fpn_v2",
            "body": {"name": "resnet10", "width": 32, "stem": "deep", "stem_width": 16},
            "taps": ((1, -1), (2, -1), (3, -1)),
            "features": 64,
            "proposals": {
                "depth": 1,
                "anchor_sizes": ((12, 16), (24, 32), (40, 52), (64, 80)),
                "aspect_ratios": (1.0, 2.0),
                "pre_nms_train": 200,
                "pre_nms_test": 200,
                "post_nms_train": 100,
                "post_nms_test": 100,
                "num_samples": 64,
            },
            "heads": {
                "conv_features": (64,),
                "hidden_features": 128,
                "num_samples": 48,
                "num_candidates": 200,
                "num_detections": 20,
            },
        }
    )
    config.batch_size = 16
    config.eval_batch_size = 40
    config.epochs = 2.0
    config.data.name = "scenes"
    config.data.eval_split = "val"
    config.data.canvas = (128, 128)
    config.data.min_size = (96,)
    config.data.max_size = 128
    config.data.max_objects = 8
    config.data.augment.flip = False  # a mirrored digit is none
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 1e-2
    config.optim.warmup_epochs = 0.15
    config.optim.clip_norm = 5.0
    config.log_every = 25
    config.checkpoint_every = 125


def _voc2012(config: ConfigDict) -> None:
    """torchvision's recipe, by 16 images: steps of 0.02, short sides of 480 to 800 pixels."""
    config.model = ConfigDict({"name": "fasterrcnn_resnet50_fpn"})
    config.init.allow_new = ("head",)
    config.batch_size = 16
    config.eval_batch_size = 8
    config.epochs = 17.0
    config.data.name = "voc2012"
    config.data.eval_split = "val"
    config.data.workers = 8
    config.data.canvas = (832, 832)
    config.data.min_size = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    config.data.max_size = 832
    config.data.augment.flip = True
    config.optim.learning_rate = 0.02
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 0.3


_SETS = {"scenes": _scenes, "voc2012": _voc2012}
