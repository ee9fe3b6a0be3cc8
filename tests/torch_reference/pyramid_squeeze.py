"""EPSANet's PSAModule (mechanisms: C)."""

import torch
from torch import nn


class PSAModule(nn.Module):
    """`reverse` is the authors': their loop puts each branch in front of those before it."""

    def __init__(self, inplans, planes, *, stride=1, reverse=True):
        super().__init__()
        share = planes // 4
        for i, (k, g) in enumerate(((3, 1), (5, 4), (7, 8), (9, 16)), start=1):
            conv = nn.Conv2d(inplans, share, k, stride, padding=k // 2, groups=g, bias=False)
            setattr(self, f"conv_{i}", conv)
        self.se = nn.Module()
        self.se.fc1 = nn.Conv2d(share, share // 16, 1)
        self.se.fc2 = nn.Conv2d(share // 16, share, 1)
        self.reverse = reverse

    def forward(self, x):
        branches = [getattr(self, f"conv_{i}")(x) for i in range(1, 5)]
        pooled = [u.mean(dim=(2, 3), keepdim=True) for u in branches]
        gates = [self.se.fc2(self.se.fc1(z).relu()).sigmoid() for z in pooled]
        shares = torch.stack(gates).softmax(dim=0)
        parts = [a * u for a, u in zip(shares, branches, strict=True)]
        return torch.cat(parts[::-1] if self.reverse else parts, dim=1)
