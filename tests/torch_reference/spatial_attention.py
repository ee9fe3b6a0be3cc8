"""The spatial half of CBAM: article 0's gate, article 1's as written and as meant, the authors'."""

import torch
from torch import nn


def mean_and_max(x):
    return torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]


class SpatialGateArticle0(nn.Module):
    """(N, 1, H, W)."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        return torch.sigmoid(self.conv1(torch.cat(mean_and_max(x), dim=1)))


class SpatialAttentionArticle1(nn.Module):
    """As written, x is overwritten: (N, 1, H, W). `intended` rescales the input instead."""

    def __init__(self, kernel_size=7, intended=False):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.intended = intended

    def forward(self, x):
        logits = self.conv(torch.cat(mean_and_max(x), dim=1))
        return torch.sigmoid(logits) * (x if self.intended else logits)


class SpatialGateOfficial(nn.Module):
    """The authors': maximum first, and a batch norm with momentum 0.01."""

    def __init__(self, kernel_size=7):
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.spatial.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x):
        mean, maximum = mean_and_max(x)
        pooled = torch.cat((maximum, mean), dim=1)
        return x * torch.sigmoid(self.spatial.bn(self.spatial.conv(pooled)))


class SeparableSpatialAttention(nn.Module):
    """What article 1 says CBAM has: each pool convolved by itself, then both weighed."""

    def __init__(self, kernel_size=7):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(2, 2, kernel_size, padding=padding, groups=2, bias=False)
        self.pointwise = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, x):
        pooled = torch.cat(mean_and_max(x), dim=1)
        return x * torch.sigmoid(self.pointwise(self.conv(pooled)))
