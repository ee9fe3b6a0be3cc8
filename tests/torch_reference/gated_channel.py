"""Gated channel transformation as the authors' PyTorch code has it."""

import torch
from torch import nn


class GatedChannel(nn.Module):
    def __init__(self, channels, mode="l2", eps=1e-5):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mode, self.eps = mode, eps

    def forward(self, x):
        if self.mode == "l2":
            s = (x.square().sum((2, 3), keepdim=True) + self.eps).sqrt() * self.alpha
            norm = (s.square().mean(1, keepdim=True) + self.eps).sqrt()
        else:
            s = x.abs().sum((2, 3), keepdim=True) * self.alpha
            norm = s.abs().mean(1, keepdim=True) + self.eps
        return x * (1 + torch.tanh(s * (self.gamma / norm) + self.beta))
