"""The strip pooling module in PyTorch, times its input, with its state dict's names."""

import torch
from torch import nn
from torch.nn import functional as F


class StripPooling(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        by_row = self.bn1(self.conv1(F.adaptive_avg_pool2d(x, (None, 1))))
        by_column = self.bn2(self.conv2(F.adaptive_avg_pool2d(x, (1, None))))
        logits = self.conv3(F.relu(by_row.expand_as(x) + by_column.expand_as(x)))
        return x * torch.sigmoid(logits)
