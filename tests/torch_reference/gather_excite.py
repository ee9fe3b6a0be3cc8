"""Gather-excite in PyTorch (mechanisms: B1), with the names that timm gives its layers."""

import torch
from torch import nn
from torch.nn import functional as F


class GatherExcite(nn.Module):
    """`size` is that of the maps where `extent` is 0; `relu` stands before the MLP."""

    def __init__(
        self,
        channels,
        *,
        conv=False,
        extent=0,
        size=None,
        mlp=False,
        relu=True,
        reduction=16,
        momentum=0.05,
    ):
        super().__init__()
        self.extent = extent
        self.gather = nn.Sequential() if conv else None
        if conv and extent == 0:
            self._add_conv(1, channels, momentum, kernel_size=size)
        elif conv:
            count = {2: 1, 4: 2, 8: 3}[extent]
            for i in range(1, count + 1):
                self._add_conv(i, channels, momentum, kernel_size=3, stride=2, padding=1)
                if i < count:
                    self.gather.add_module(f"act{i}", nn.ReLU())
        if mlp:
            self.mlp = nn.Sequential()
            if relu:
                self.mlp.add_module("before", nn.ReLU())
            self.mlp.add_module("fc1", nn.Conv2d(channels, channels // reduction, 1))
            self.mlp.add_module("act", nn.ReLU())
            self.mlp.add_module("fc2", nn.Conv2d(channels // reduction, channels, 1))
        else:
            self.mlp = nn.Identity()

    def _add_conv(self, i, channels, momentum, **kwargs):
        conv = nn.Conv2d(channels, channels, groups=channels, bias=False, **kwargs)
        self.gather.add_module(f"conv{i}", conv)
        self.gather.add_module(f"norm{i}", nn.BatchNorm2d(channels, momentum=momentum))

    def forward(self, x):
        if self.gather is not None:
            z = self.gather(x)
        elif self.extent == 0:
            z = x.mean((2, 3), keepdim=True)
        else:
            e = self.extent
            z = F.avg_pool2d(x, 2 * e - 1, stride=e, padding=e - 1, count_include_pad=False)
        return x * torch.sigmoid(F.interpolate(self.mlp(z), size=x.shape[2:]))
