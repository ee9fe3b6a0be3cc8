"""SGE in PyTorch (mechanisms: B5), with its state dict's names."""

import torch
from torch import nn


class SpatialGroupEnhance(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def forward(self, x):
        grouped = x.unflatten(1, (self.weight.shape[1], -1))
        likeness = (grouped * grouped.mean((3, 4), keepdim=True)).sum(2)
        flat = likeness.flatten(2)
        flat = flat - flat.mean(2, keepdim=True)
        t = (flat / (flat.std(2, keepdim=True) + 1e-5)).reshape(likeness.shape)
        return (grouped * torch.sigmoid(self.weight * t + self.bias)[:, :, None]).reshape(x.shape)
