"""BAT block in PyTorch after the paper, with its authors' names; and timm's, without dropout."""

import torch
from torch import nn

from tests.torch_reference.torchvision_shim import timm


def conv_norm_relu(channels, features, bias):
    conv = nn.Conv2d(channels, features, 1, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU())


class Transform(nn.Module):
    def __init__(self, channels, size, groups, bias):
        super().__init__()
        self.conv1 = conv_norm_relu(channels, groups, bias)
        self.conv_p = nn.Conv2d(groups, size * size * groups, (size, 1))
        self.conv_q = nn.Conv2d(groups, size * size * groups, (1, size))
        self.conv2 = conv_norm_relu(channels, channels, bias)
        self.size, self.groups = size, groups

    def forward(self, u):
        guide = self.conv1(u)
        shape = (len(u), self.groups, self.size, self.size)
        rows = nn.functional.adaptive_max_pool2d(guide, (self.size, 1))
        columns = nn.functional.adaptive_max_pool2d(guide, (1, self.size))
        p = self.conv_p(rows).reshape(shape).sigmoid()
        q = self.conv_q(columns).reshape(shape).sigmoid()
        p, q = p / p.sum(3, keepdim=True), q / q.sum(2, keepdim=True)
        # One matrix a sample and group, which mixes blocks and leaves the place within them.
        tall, wide = (torch.eye(side // self.size, dtype=u.dtype) for side in u.shape[2:])
        mixed = [
            torch.stack(
                [
                    torch.kron(p[n, g], tall) @ plane @ torch.kron(q[n, g], wide)
                    for g, group in enumerate(sample.chunk(self.groups))
                    for plane in group
                ]
            )
            for n, sample in enumerate(u)
        ]
        return self.conv2(torch.stack(mixed))


class BATBlock(nn.Module):
    def __init__(self, channels, reduction=2, size=7, groups=4, *, bias=True):
        super().__init__()
        self.conv1 = conv_norm_relu(channels, channels // reduction, bias)
        self.batransform = Transform(channels // reduction, size, groups, bias)
        self.conv2 = conv_norm_relu(channels // reduction, channels, bias)

    def forward(self, x):
        return x + self.conv2(self.batransform(self.conv1(x)))


def timm_block(channels):
    return timm.layers.non_local_attn.BatNonLocalAttn(channels, drop_rate=0.0)
