"""The channel half of CBAM: article 0's, which answers the gate, and the authors'."""

import torch
from torch import nn
from torch.nn import functional as F


class ChannelAttention(nn.Module):
    """Article 0's: (N, C, 1, 1)."""

    def __init__(self, in_planes, ratio=16):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.fc1 = nn.Conv2d(in_planes, in_planes // ratio, 1, bias=False)
        self.fc2 = nn.Conv2d(in_planes // ratio, in_planes, 1, bias=False)

    def forward(self, x):
        pooled = (self.avg_pool(x), self.max_pool(x))
        return torch.sigmoid(sum(self.fc2(F.relu(self.fc1(z))) for z in pooled))


class ChannelGate(nn.Module):
    """The authors': biases, and four pools to choose from."""

    def __init__(self, gate_channels, reduction_ratio=16, pool_types=("avg", "max")):
        super().__init__()
        hidden = gate_channels // reduction_ratio
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(gate_channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, gate_channels),
        )
        self.pool_types = pool_types

    def forward(self, x):
        size = x.shape[2:]
        pools = {
            "avg": lambda: F.avg_pool2d(x, size),
            "max": lambda: F.max_pool2d(x, size),
            "lp": lambda: F.lp_pool2d(x, 2, size),
            "lse": lambda: torch.logsumexp(x.flatten(2), dim=2),
        }
        logits = sum(self.mlp(pools[name]()) for name in self.pool_types)
        return x * torch.sigmoid(logits)[:, :, None, None]
