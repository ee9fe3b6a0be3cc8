"""SA-Net's layer in PyTorch (mechanisms: B3), with its state dict's names."""

import torch
from torch import nn


class ShuffleAttention(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        share = channels // (2 * groups)
        self.groups = groups
        for name, value in (("cweight", 0), ("cbias", 1), ("sweight", 0), ("sbias", 1)):
            setattr(self, name, nn.Parameter(torch.full((1, share, 1, 1), float(value))))
        self.gn = nn.GroupNorm(share, share)

    def forward(self, x):
        first, second = x.unflatten(1, (self.groups, -1)).flatten(0, 1).chunk(2, dim=1)
        pooled = first.mean((2, 3), keepdim=True)
        first = first * torch.sigmoid(self.cweight * pooled + self.cbias)
        second = second * torch.sigmoid(self.sweight * self.gn(second) + self.sbias)
        y = torch.cat((first, second), dim=1).reshape(x.shape)
        return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
