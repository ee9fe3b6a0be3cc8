"""Criss-cross attention in PyTorch (mechanisms: C, CCNet), with its state dict's names."""

import torch
from torch import nn


class CrissCrossAttention(nn.Module):
    def __init__(self, channels, recurrence=1):
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.recurrence = recurrence

    def forward(self, x):
        for _ in range(self.recurrence):
            x = self.once(x)
        return x

    def once(self, x):
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        height = x.shape[2]
        column = torch.einsum("bdhw,bdgw->bhwg", query, key)
        row = torch.einsum("bdhw,bdhv->bhwv", query, key)
        itself = torch.eye(height, dtype=torch.bool)[None, :, None, :]
        column = column.masked_fill(itself, -torch.inf)
        weights = torch.cat([column, row], dim=3).softmax(dim=3)
        by_column = torch.einsum("bhwg,bcgw->bchw", weights[..., :height], value)
        by_row = torch.einsum("bhwv,bchv->bchw", weights[..., height:], value)
        return self.gamma * (by_column + by_row) + x
