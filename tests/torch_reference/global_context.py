"""GCNet's context block in PyTorch (mechanisms: B7), with its state dict's names."""

import torch
from torch import nn


class ContextBlock(nn.Module):
    def __init__(self, channels, planes, pooling="att", fusions=("channel_add",)):
        super().__init__()
        if pooling == "att":
            self.conv_mask = nn.Conv2d(channels, 1, 1)
        for fusion in fusions:
            transform = nn.Sequential(
                nn.Conv2d(channels, planes, 1),
                nn.LayerNorm([planes, 1, 1]),
                nn.ReLU(),
                nn.Conv2d(planes, channels, 1),
            )
            self.add_module(f"{fusion}_conv", transform)

    def forward(self, x):
        context = x.mean((2, 3), keepdim=True)
        if hasattr(self, "conv_mask"):
            weights = self.conv_mask(x).flatten(2).softmax(dim=2)
            context = torch.einsum("bcn,bon->bc", x.flatten(2), weights)[:, :, None, None]
        if hasattr(self, "channel_mul_conv"):
            x = x * torch.sigmoid(self.channel_mul_conv(context))
        if hasattr(self, "channel_add_conv"):
            x = x + self.channel_add_conv(context)
        return x
