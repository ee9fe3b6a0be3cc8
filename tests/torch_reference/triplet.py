"""Triplet attention under the names of the authors' two files."""

import torch
from torch import nn


class _ConvNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x):
        """The gate of maps whose second axis is pooled, maximum first."""
        pooled = torch.stack((x.amax(1), x.mean(1)), dim=1)
        return torch.sigmoid(self.bn(self.conv(pooled)))


class TripletAttention(nn.Module):
    """The branches are cw.conv, hc.conv and hw.conv, or what `names` says."""

    def __init__(self, no_spatial=False, names=("cw.conv", "hc.conv", "hw.conv")):
        super().__init__()
        self.names = names[: 2 if no_spatial else 3]
        for name in self.names:
            outer, inner = name.split(".")
            self.add_module(outer, nn.Module())
            getattr(self, outer).add_module(inner, _ConvNorm())

    def forward(self, x):
        orders = ((0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3))
        answers = []
        for name, order in zip(self.names, orders, strict=False):
            turned = x.permute(order)
            answers.append((turned * self.get_submodule(name)(turned)).permute(order))
        return sum(answers) / len(answers)
