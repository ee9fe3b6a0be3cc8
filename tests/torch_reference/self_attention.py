"""Article 1's self-attention in PyTorch (mechanisms: A7), with its state dict's names."""

import torch
from torch import nn


class SelfAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        query, key, value = (
            conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        attention = torch.einsum("bdi,bdj->bij", query, key).softmax(dim=2)
        context = torch.einsum("bij,bcj->bci", attention, value)
        return self.gamma * context.reshape(x.shape) + x
