"""DANet's channel attention in PyTorch (mechanisms: C, DANet), as its code and as its paper say."""

import torch
from torch import nn


class ChannelAffinity(nn.Module):
    def __init__(self, similar=False):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.similar = similar

    def forward(self, x):
        maps = x.flatten(2)
        energy = maps @ maps.transpose(1, 2)
        if not self.similar:
            energy = energy.amax(dim=2, keepdim=True) - energy
        return self.gamma * (energy.softmax(dim=2) @ maps).reshape(x.shape) + x
