"""The double attention block of A^2-Nets, with the names of its ports (mechanisms: C)."""

import torch
from torch import nn


class DoubleAttention(nn.Module):
    """`proj` names the last convolution; the ports have no residual."""

    def __init__(self, channels, c_m, c_n, proj="proj", residual=False):
        super().__init__()
        self.convA = nn.Conv2d(channels, c_m, 1)
        self.convB = nn.Conv2d(channels, c_n, 1)
        self.convV = nn.Conv2d(channels, c_n, 1)
        self.add_module(proj, nn.Conv2d(c_m, channels, 1))
        self.proj_name, self.residual = proj, residual

    def forward(self, x):
        a, b, v = (conv(x).flatten(2) for conv in (self.convA, self.convB, self.convV))
        descriptors = torch.einsum("bmp,bnp->bmn", a, b.softmax(dim=2))
        z = torch.einsum("bmn,bnp->bmp", descriptors, v.softmax(dim=1))
        y = getattr(self, self.proj_name)(z.unflatten(2, x.shape[2:]))
        return x + y if self.residual else y
