"""CBAM: articles 0 and 2, and the authors'."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.torch_reference.channel_attention import ChannelAttention, ChannelGate
from tests.torch_reference.spatial_attention import (
    SpatialGateArticle0,
    SpatialGateOfficial,
    mean_and_max,
)


class CBAMArticle0(nn.Module):
    def __init__(self, in_planes, ratio=16, kernel_size=7):
        super().__init__()
        self.ca = ChannelAttention(in_planes, ratio)
        self.sa = SpatialGateArticle0(kernel_size)

    def forward(self, x):
        x = x * self.ca(x)
        return x * self.sa(x)


class CBAMArticle2(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.conv_after_concat = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(sum(self.fc2(F.relu(self.fc1(z))) for z in pooled))
        return x * torch.sigmoid(self.conv_after_concat(torch.cat(mean_and_max(x), dim=1)))


class CBAMOfficial(nn.Module):
    def __init__(self, gate_channels, reduction_ratio=16, pool_types=("avg", "max")):
        super().__init__()
        self.ChannelGate = ChannelGate(gate_channels, reduction_ratio, pool_types)
        self.SpatialGate = SpatialGateOfficial()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))
