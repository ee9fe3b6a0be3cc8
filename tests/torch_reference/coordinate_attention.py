"""Coordinate attention in PyTorch (mechanisms: B6), with its state dict's names."""

import torch
from torch import nn
from torch.nn import functional as F


class CoordAtt(nn.Module):
    def __init__(self, channels, reduction=32):
        super().__init__()
        hidden = max(8, channels // reduction)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        strips = torch.cat([x.mean(3), x.mean(2)], dim=2)[..., None]
        f = F.hardswish(self.bn1(self.conv1(strips)))
        by_row, by_column = f.split([x.shape[2], x.shape[3]], dim=2)
        gate_h = torch.sigmoid(self.conv_h(by_row))
        gate_w = torch.sigmoid(self.conv_w(by_column.transpose(2, 3)))
        return x * gate_w * gate_h
