"""A class for each pixel, of data sets in Pascal VOC's layout.

python train.py --config configs/voc_segment.py:scenes --workdir runs/segment
python train.py --config configs/voc_segment.py:voc2012 --workdir runs/segment_voc --platform gpu \\
    --config.data.data_dir=VOCdevkit/VOC2012 --config.init.weights=fcn_resnet50_coco-1167a1af.pth

The argument is "scenes" or "voc2012"; a mechanism behind it stands between backbone and head, as in
"scenes,danet_position"; and ",debug" shrinks the run to seconds.

scenes: pictures of one to six handwritten digits on a textured ground, drawn on the spot: 4,000 to
train on and 200 of 96 to 128 pixels to test, ten digits and the background. A small residual
network with the head of LR-ASPP, for a CPU. Test mIoU by the command above: 0.911, of one seed, in
13 min 36 s on two cores that had other work too.

voc2012: 1,464 images and 1,449 to test, at their own size. FCN on a dilated ResNet-50 by
torchvision's recipe: SGD, the learning rate 0.01 for 8 images falling by (1 - t)^0.9, 30 epochs,
images resized by 0.5 to 2 and cut to 480 pixels. Not so are the auxiliary head's learning rate,
there ten times the others', and the test images, there resized to 520. The weights above are
torchvision's; a backbone of ImageNet alone is put in as docs/segmentation.md has it. Not run here:
no figure is claimed.
"""

from ml_collections import ConfigDict

from flaxattn.errors import unknown
from flaxattn.train.config import base_config, option


def get_config(arg: str = "scenes") -> ConfigDict:
    name, mechanism, debug = option(arg, "scenes", "none")
    if name not in _SETS:
        raise unknown("set of masks", name, _SETS)
    config = base_config()
    config.task = "segmentation"
    config.data.source = "voc"
    config.data.eval_split = "val"
    _SETS[name](config)
    if mechanism != "none":
        config.model.attention = {"name": mechanism}
    if debug:
        config.model.backbone.update(stage_sizes=(1, 1, 1, 1), width=(8, 8, 8, 8))
        config.epochs = 0.008
        config.optim.warmup_epochs = 0.002
        config.data.image_size = 32
        config.log_every = 2
        config.checkpoint_every = 4
    return config


def _scenes(config: ConfigDict) -> None:
    config.model = ConfigDict(
        {
            "name": "lraspp_resnet10",
            "backbone": {"width": (8, 24, 48, 96), "stem": "small"},
            "head": {"features": 64},
        }
    )
    config.batch_size = 8
    config.eval_batch_size = 40
    config.epochs = 5.0
    config.data.name = "scenes"
    config.data.image_size = 96
    config.data.eval_resize = 0
    config.data.canvas = (128, 128)
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.2, 0.2, 0.2)
    config.data.augment.scale = (0.8, 1.25)
    config.data.augment.flip = False  # a mirrored digit is none
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.01
    config.optim.warmup_epochs = 0.15
    config.log_every = 100
    config.checkpoint_every = 500


def _voc2012(config: ConfigDict) -> None:
    config.model = ConfigDict({"name": "fcn_resnet50", "backbone": {}})
    config.batch_size = 8
    config.eval_batch_size = 8
    config.epochs = 30.0
    config.data.name = "voc2012"
    config.data.workers = 8
    config.data.image_size = 480
    config.data.eval_resize = 0
    config.data.canvas = (512, 512)
    config.data.augment.scale = (0.5, 2.0)
    config.optim.learning_rate = 0.01
    config.optim.decay = "poly"
    config.optim.warmup_epochs = 0.0


_SETS = {"scenes": _scenes, "voc2012": _voc2012}
