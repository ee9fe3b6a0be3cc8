"""Style-based recalibration: the authors' layer, and the port in changzy00/pytorch-attention."""

import torch
from torch import nn


class SRMLayer(nn.Module):
    def __init__(self, channel):
        super().__init__()
        self.cfc = nn.Parameter(torch.zeros(channel, 2))
        self.bn = nn.BatchNorm2d(channel)

    def forward(self, x):
        deviation = torch.sqrt(x.flatten(2).var(2) + 1e-5)
        t = torch.stack((x.mean((2, 3)), deviation), dim=2)
        z = (t * self.cfc).sum(2)[:, :, None, None]
        return x * torch.sigmoid(self.bn(z))


class SRMPort(nn.Module):
    def __init__(self, channel):
        super().__init__()
        self.cfc = nn.Conv1d(channel, channel, 2, groups=channel, bias=False)
        self.bn = nn.BatchNorm1d(channel)

    def forward(self, x):
        u = torch.stack((x.mean((2, 3)), x.flatten(2).std(2)), dim=2)
        return x * torch.sigmoid(self.bn(self.cfc(u)))[:, :, :, None]
