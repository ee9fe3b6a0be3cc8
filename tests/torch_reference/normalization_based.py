"""Normalisation-based attention as the authors' code has it, with its earlier spatial half."""

import torch
from torch import nn


class _Half(nn.Module):
    def __init__(self, name, norm):
        super().__init__()
        self.add_module(name, norm)
        self.name = name

    def forward(self, x):
        """sigmoid(w * bn(x)) * x, with the channels of `bn` second."""
        bn = self.get_submodule(self.name)
        weight = bn.weight.detach().abs()
        weight = (weight / weight.sum()).view(1, -1, *[1] * (x.ndim - 2))
        return torch.sigmoid(weight * bn(x)) * x


class Att(nn.Module):
    def __init__(self, channels, positions=None):
        super().__init__()
        self.Channel_Att = _Half("bn2", nn.BatchNorm2d(channels))
        if positions is not None:
            self.Spatial_Att = _Half("bn", nn.BatchNorm1d(positions))

    def forward(self, x):
        y = self.Channel_Att(x)
        if not hasattr(self, "Spatial_Att"):
            return y
        return self.Spatial_Att(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
