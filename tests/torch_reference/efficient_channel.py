"""Efficient channel attention as articles 0 and 2 and the authors write it; and with two layers."""

import torch
from torch import nn


class ECALayer(nn.Module):
    def __init__(self, k_size=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k_size, padding=(k_size - 1) // 2, bias=False)

    def forward(self, x):
        z = x.mean((2, 3))[:, None, :]
        return x * torch.sigmoid(self.conv(z))[:, 0, :, None, None]


class TwoLayers(nn.Module):
    """The experiment that timm calls ecam."""

    def __init__(self, hidden, k_size=3):
        super().__init__()
        self.conv = nn.Conv1d(1, hidden, 1)
        self.conv2 = nn.Conv1d(hidden, 1, k_size, padding=k_size // 2)

    def forward(self, x):
        z = x.mean((2, 3))[:, None, :]
        gate = torch.sigmoid(self.conv2(torch.relu(self.conv(z))))
        return x * gate[:, 0, :, None, None]
