"""Large kernel layers in PyTorch (mechanisms: C, LSK and LSKA), with their state dicts' names."""

import torch
from torch import nn


class LSK(nn.Module):
    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = dilated(channels, (7, 7), 3)
        self.conv1 = nn.Conv2d(channels, half, 1)
        self.conv2 = nn.Conv2d(channels, half, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(half, channels, 1)

    def forward(self, x):
        near = self.conv0(x)
        branches = [self.conv1(near), self.conv2(self.conv_spatial(near))]
        both = torch.cat(branches, 1)
        pooled = torch.stack([both.mean(1), both.max(1).values], 1)
        weights = self.conv_squeeze(pooled).sigmoid().split(1, 1)
        return x * self.conv(sum(u * weight for u, weight in zip(branches, weights, strict=True)))


class LKA(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = dilated(channels, (7, 7), 3)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class LSKA(nn.Module):
    def __init__(self, channels, near, far, dilation):
        super().__init__()
        self.conv0h = dilated(channels, (1, near), 1)
        self.conv0v = dilated(channels, (near, 1), 1)
        self.conv_spatial_h = dilated(channels, (1, far), dilation)
        self.conv_spatial_v = dilated(channels, (far, 1), dilation)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        near = self.conv0v(self.conv0h(x))
        return x * self.conv1(self.conv_spatial_v(self.conv_spatial_h(near)))


def dilated(channels, size, dilation):
    """A depthwise convolution that keeps the map's size."""
    padding = tuple(dilation * (k - 1) // 2 for k in size)
    return nn.Conv2d(channels, channels, size, padding=padding, dilation=dilation, groups=channels)
