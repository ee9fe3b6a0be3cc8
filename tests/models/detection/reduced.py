"""Small detectors made of torchvision's own classes, and the same ones here."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

from flaxattn import weights
from flaxattn.models.block_spec import conv, inverted
from flaxattn.models.detection import Targets, create_detector
from tests.attention import parity
from tests.torch_reference.torchvision_shim import torchvision

detection = torchvision.models.detection
ops = torchvision.ops

CLASSES, FEATURES, HIDDEN = 5, 16, 32
CANVAS = (128, 192)
SIZES = ((128, 192), (100, 150))
ANCHORS = {"resnet": ((8,), (16,), (32,), (64,), (128,)), "mobilenet": ((16, 32, 64),) * 3}
RPN = {"pre_nms_train": 300, "pre_nms_test": 200, "post_nms_train": 250, "post_nms_test": 150}
# A number of samples that there are boxes for, as the statistics of batch norms need it.
SAMPLES = {"rpn": 64, "heads": 32}
OBJECTS = (
    ((10, 20, 60, 90, 1), (70, 5, 180, 120, 4), (65, 60, 80, 79, 2)),
    ((3, 4, 50, 40, 3), (40, 30, 149, 99, 4)),
)


class Pair(NamedTuple):
    """The two sides, in float64: a module and its variables, and torchvision's."""

    model: object
    variables: object
    reference: torch.nn.Module


class HardSigmoid(torch.nn.Module):
    """torch's, but for the 1/6 of its gradient, which is a float32."""

    def forward(self, x):
        return torch.nn.functional.relu6(x + 3) / 6


def _resnet_reference(version):
    resnet = torchvision.models.resnet
    if version == 1:
        norm, width = ops.FrozenBatchNorm2d, 256
        body = resnet.ResNet(resnet.Bottleneck, [1] * 4, width_per_group=8, norm_layer=norm)
    else:
        norm, width = torch.nn.BatchNorm2d, 64
        body = resnet.ResNet(resnet.BasicBlock, [1] * 4)
    backbone = detection.backbone_utils.BackboneWithFPN(
        body,
        {f"layer{i + 1}": str(i) for i in range(4)},
        [width, width * 2, width * 4, width * 8],
        FEATURES,
        norm_layer=norm if version == 2 else None,
    )
    head = None
    if version == 2:
        shape = (FEATURES, 7, 7)
        head = detection.faster_rcnn.FastRCNNConvFCHead(shape, [24, 8], [HIDDEN], norm_layer=norm)
    return _reference(backbone, "resnet", head, depth=version)


def _mobilenet_reference():
    row = functools.partial(
        torchvision.models.mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1
    )
    table = [
        row(16, 3, 32, 16, False, "RE", 2),
        row(16, 3, 32, 16, False, "RE", 2),
        row(16, 5, 32, 24, True, "HS", 2),
        row(24, 3, 48, 24, True, "HS", 2),
        row(24, 3, 48, 24, True, "HS", 1),
    ]
    norm = ops.FrozenBatchNorm2d
    body = torchvision.models.MobileNetV3(table, 64, norm_layer=norm).features
    for module in body.modules():
        if hasattr(module, "scale_activation"):
            module.scale_activation = HardSigmoid()
    backbone = detection.backbone_utils.BackboneWithFPN(
        body, {"4": "0", "6": "1"}, [24, 144], FEATURES
    )
    return _reference(backbone, "mobilenet", None, depth=1)


def _reference(backbone, kind, head, depth):
    sizes = ANCHORS[kind]
    return detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_head=detection.rpn.RPNHead(FEATURES, 3 * len(sizes[0]), conv_depth=depth),
        rpn_batch_size_per_image=SAMPLES["rpn"],
        box_head=head or detection.faster_rcnn.TwoMLPHead(FEATURES * 49, HIDDEN),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(HIDDEN, CLASSES),
        box_batch_size_per_image=SAMPLES["heads"],
        **{f"rpn_{name.replace('nms', 'nms_top_n')}": number for name, number in RPN.items()},
    )


def reduced(kind):
    """The detector `kind` and its reference, before they have weights."""
    proposals = {
        **RPN,
        "anchor_sizes": ANCHORS["mobilenet" if kind == "mobilenet" else "resnet"],
        "num_samples": SAMPLES["rpn"],
    }
    heads = {"hidden_features": HIDDEN, "num_samples": SAMPLES["heads"]}
    make = functools.partial(create_detector, num_classes=CLASSES, features=FEATURES)
    if kind == "mobilenet":
        stages = (
            (inverted(16, 3, 2, 2, activation="relu"),),
            (inverted(16, 3, 2, 2, activation="relu"),),
            (inverted(24, 5, 2, 2, se=0.25),),
            (inverted(24, 3, 2, 2, repeats=2, se=0.25),),
            (conv(144, 1),),
        )
        model = make(
            "fasterrcnn_mobilenet_v3_large_fpn",
            body={"stages": stages},
            taps=((4, 0), (5, -1)),
            proposals=proposals | {"score_threshold": 0.0},
            heads=heads,
        )
        return model, _mobilenet_reference()
    heads |= {"formulation": "gather"}  # alone it is traced in half the time
    body = {"stage_sizes": (1, 1, 1, 1)}
    if kind == "resnet":
        body |= {"group_width": 8}
        model = make("fasterrcnn_resnet50_fpn", body=body, proposals=proposals, heads=heads)
        return model, _resnet_reference(1)
    body |= {"block": "basic"}
    heads |= {"conv_features": (24, 8)}
    model = make("fasterrcnn_resnet50_fpn_v2", body=body, proposals=proposals, heads=heads)
    return model, _resnet_reference(2)


def images():
    x = np.random.default_rng(0).normal(size=(2, *CANVAS, 3))
    for image, (height, width) in zip(x, SIZES, strict=True):
        image[height:] = image[:, width:] = 0
    return x


def targets():
    """The objects as ours, with one place of padding, and as torch's."""
    rows = np.zeros((2, 4, 5))
    for image, objects in zip(rows, OBJECTS, strict=True):
        image[: len(objects)] = objects
    ours = Targets(
        rows[:, :, :4], rows[:, :, 4].astype(np.int32), rows[:, :, 4] > 0, np.array([7, 3])
    )
    theirs = [
        {
            "boxes": torch.tensor(objects, dtype=torch.float64)[:, :4],
            "labels": torch.tensor(objects)[:, 4],
        }
        for objects in OBJECTS
    ]
    return ours, theirs


def calibrate(reference):
    """Random weights, and statistics by which every norm puts out what a trained one might."""
    rng = np.random.default_rng(1)
    parity.randomise(reference, rng)

    def set_statistics(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))
        if norm.weight.shape:
            norm.weight.copy_(torch.tensor(rng.uniform(0.5, 1.5, size=norm.weight.shape)))
            norm.bias.copy_(torch.tensor(rng.normal(size=norm.bias.shape) / 4))

    norms = [m for m in reference.modules() if hasattr(m, "running_mean")]
    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    with torch.no_grad():
        # Scores that spread and boxes that stay near the anchors.
        for layer, gain in (
            (reference.rpn.head.cls_logits, 2),
            (reference.rpn.head.bbox_pred, 0.3),
            (reference.roi_heads.box_predictor.cls_score, 3),
        ):
            layer.weight.mul_(gain)
        reference.eval()
        detect(reference, images())
    for hook in hooks:
        hook.remove()


def detect(reference, x, objects=None):
    """What torchvision makes of images that are on their canvas already."""
    images = torch.tensor(parity.to_channels_first(x))
    listed = detection.image_list.ImageList(images, [*SIZES])
    features = reference.backbone(images)
    proposals, losses = reference.rpn(listed, features, objects)
    found, more = reference.roi_heads(features, proposals, listed.image_sizes, objects)
    return {
        "features": [*features.values()],
        "head": reference.rpn.head([*features.values()]),
        "proposals": proposals,
        "detections": found,
        "losses": losses | more,
    }


def calibrated(model, reference):
    """Both with the same weights, which make something be found."""
    calibrate(reference)
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    return Pair(model, weights.load(model, state, (1, *CANVAS, 3), "torchvision"), reference)


def pair(kind):
    """The detector `kind` and its reference; call it with x64 on."""
    model, reference = reduced(kind)
    return calibrated(model.clone(param_dtype=jnp.float64), reference.double())
