"""The channel half of GSoP, with the names of the authors' bottleneck."""

import torch
from torch import nn


class GSoP(nn.Module):
    def __init__(self, channels, hidden=128, stride=1):
        super().__init__()
        self.conv_for_DR = nn.Conv2d(channels, hidden, 1, stride=stride)
        self.bn_for_DR = nn.BatchNorm2d(hidden)
        self.row_bn = nn.BatchNorm2d(hidden)
        self.row_conv_group = nn.Conv2d(hidden, 4 * hidden, (hidden, 1), groups=hidden)
        self.fc_adapt_channels = nn.Conv2d(4 * hidden, channels, 1)

    def forward(self, x):
        u = torch.relu(self.bn_for_DR(self.conv_for_DR(torch.relu(x)))).flatten(2)
        count = u.shape[2]
        centring = torch.eye(count, dtype=u.dtype) / count - 1 / count**2
        covariance = u @ centring @ u.transpose(1, 2)
        rows = self.row_conv_group(self.row_bn(covariance.unsqueeze(3)))
        return x * torch.sigmoid(self.fc_adapt_channels(rows))
