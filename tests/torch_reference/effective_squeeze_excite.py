"""Effective squeeze-and-excitation as CenterMask's authors compute it, without fixed slopes."""

from torch import nn
from torch.nn import functional as F


class ESEModule(nn.Module):
    def __init__(self, channel):
        super().__init__()
        self.fc = nn.Conv2d(channel, channel, 1)

    def forward(self, x):
        return x * (F.relu6(self.fc(F.adaptive_avg_pool2d(x, 1)) + 3) / 6)
