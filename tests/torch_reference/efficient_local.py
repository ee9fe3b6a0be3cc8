"""Efficient local attention in PyTorch: one 1-D convolution and one group norm for both axes."""

import torch
from torch import nn


class EfficientLocal(nn.Module):
    def __init__(self, channels, kernel_size=7, groups=None, num_groups=16):
        super().__init__()
        self.conv = nn.Conv1d(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=groups or channels,
            bias=False,
        )
        self.gn = nn.GroupNorm(num_groups, channels)

    def forward(self, x):
        gate_h, gate_w = (torch.sigmoid(self.gn(self.conv(x.mean(axis)))) for axis in (3, 2))
        return x * gate_h[:, :, :, None] * gate_w[:, :, None, :]
