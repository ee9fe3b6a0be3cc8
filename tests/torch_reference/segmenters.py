"""PSANet, DANet and CCNet in PyTorch, by their repositories' names, on ResNets of five blocks.

The blocks are timm's and torchvision's.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests.torch_reference.channel_affinity import ChannelAffinity
from tests.torch_reference.criss_cross import CrissCrossAttention
from tests.torch_reference.psanet import PSA
from tests.torch_reference.self_attention import SelfAttention
from tests.torch_reference.torchvision_shim import timm, torchvision

SIZES = (1, 1, 1, 2)


def deep_resnet():
    """A deep stem of 64 channels, and in stages 3 and 4 dilations 2 and 4 from the first on."""
    block = timm.models.resnet.Bottleneck
    network = timm.models.resnet.ResNet(
        block, SIZES, num_classes=0, stem_type="deep", stem_width=64, output_stride=8
    )
    for stage, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for layer in stage:
            layer.conv2.dilation = layer.conv2.padding = (dilation, dilation)
    return network


def conv_norm(inputs, outputs, *activation, bias=False):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *activation)


def upsampled(scores, x):
    return {
        name: F.interpolate(score, size=x.shape[2:], mode="bilinear", align_corners=True)
        for name, score in scores.items()
    }


class PSANet(nn.Module):
    def __init__(self, classes, mask, mid, features):
        super().__init__()
        network = deep_resnet()
        stem = (*network.conv1, network.bn1, nn.ReLU(), network.maxpool)
        self.layer0 = nn.Sequential(*stem)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            self.add_module(stage, getattr(network, stage))
        self.psa = PSA(2048, mask, mid, shrink=2)
        for name, inputs, width in (("cls", 4096, features), ("aux", 1024, 256)):
            score = nn.Conv2d(width, classes, 1)
            head = conv_norm(inputs, width, nn.ReLU(), nn.Dropout2d(0.1), score)
            self.add_module(name, head)

    def forward(self, x):
        third = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        out = self.cls(self.psa(self.layer4(third)))
        return upsampled({"out": out, "aux": self.aux(third)}, x)


class CCNetHead(nn.Module):
    def __init__(self, classes, features):
        super().__init__()
        self.conva = conv_norm(2048, 512, nn.LeakyReLU(0.01))
        self.cca = CrissCrossAttention(512, recurrence=2)
        self.convb = conv_norm(512, 512, nn.LeakyReLU(0.01))
        self.bottleneck = conv_norm(
            2048 + 512, features, nn.Dropout2d(0.1), nn.Conv2d(features, classes, 1)
        )

    def forward(self, x):
        conv, norm, _, score = self.bottleneck
        y = self.convb(self.cca(self.conva(x)))
        y = norm(conv(torch.cat([x, y], dim=1)))
        return score(F.leaky_relu(y, 0.01))


class CCNet(nn.Module):
    """In evaluation mode; the leaky ReLU that InPlaceABN has in it stands outside of the norm."""

    def __init__(self, classes, features, aux_features):
        super().__init__()
        network = deep_resnet()
        for number, (conv, norm) in enumerate(((0, 1), (3, 4)), start=1):
            self.add_module(f"conv{number}", network.conv1[conv])
            self.add_module(f"bn{number}", network.conv1[norm])
        self.conv3, self.bn3 = network.conv1[6], network.bn1
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            self.add_module(stage, getattr(network, stage))
        self.head = CCNetHead(classes, features)
        score = nn.Conv2d(aux_features, classes, 1)
        self.dsn = conv_norm(1024, aux_features, nn.Dropout2d(0.1), score, bias=True)

    def forward(self, images):
        x = images
        for number in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        third = self.layer3(self.layer2(self.layer1(x)))
        conv, norm, _, score = self.dsn
        aux = score(F.leaky_relu(norm(conv(third)), 0.01))
        return upsampled({"out": self.head(self.layer4(third)), "aux": aux}, images)


class DANetHead(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        width = inputs // 4
        for before, after in (("conv5a", "conv51"), ("conv5c", "conv52")):
            self.add_module(before, conv_norm(inputs, width, nn.ReLU()))
            self.add_module(after, conv_norm(width, width, nn.ReLU()))
        self.sa, self.sc = SelfAttention(width), ChannelAffinity()
        for name in ("conv6", "conv7", "conv8"):
            score = nn.Conv2d(width, classes, 1)
            self.add_module(name, nn.Sequential(nn.Dropout2d(0.1), score))

    def forward(self, x):
        position = self.conv51(self.sa(self.conv5a(x)))
        channel = self.conv52(self.sc(self.conv5c(x)))
        return {
            "out": self.conv8(position + channel),
            "position": self.conv6(position),
            "channel": self.conv7(channel),
        }


class DANet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.pretrained = torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            SIZES,
            replace_stride_with_dilation=[False, True, True],
        )
        for block, dilation in zip(self.pretrained.layer4, (4, 8), strict=True):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        self.pretrained.fc = None
        self.head = DANetHead(2048, classes)

    def forward(self, images):
        trunk = self.pretrained
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        x = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))
        return upsampled(self.head(x), images)
