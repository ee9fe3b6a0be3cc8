"""Polarized self-attention in PyTorch (mechanisms: B4): the authors' two, and the paper's."""

import torch
from torch import nn


class Polarized(nn.Module):
    """The authors' names; `spatial_softmax` is what is softmaxed in the spatial gate."""

    names = ("conv_q_right", "conv_v_right", "conv_up", "conv_q_left", "conv_v_left")

    def __init__(self, channels, *, up, sequential, spatial_softmax, bias=False):
        super().__init__()
        half = channels // 2
        q_right = nn.Conv2d(channels, 1, 1, bias=bias)
        v_right, q_left, v_left = (nn.Conv2d(channels, half, 1, bias=bias) for _ in range(3))
        for name, layer in zip(self.names, (q_right, v_right, up, q_left, v_left), strict=True):
            self.add_module(name, layer)
        self.sequential, self.spatial_softmax = sequential, spatial_softmax

    def forward(self, x):
        q_right, v_right, up, q_left, v_left = (getattr(self, name) for name in self.names)
        weights = q_right(x).flatten(2).softmax(2)
        pooled = v_right(x).flatten(2) @ weights.transpose(1, 2)
        channel = x * torch.sigmoid(self.normed(up(pooled[..., None])))
        if self.sequential:
            return channel * self.spatial_gate(channel, q_left, v_left)
        return channel + x * self.spatial_gate(x, q_left, v_left)

    def normed(self, z):
        return z

    def spatial_gate(self, x, q_left, v_left):
        query, value = q_left(x).mean((2, 3))[:, None], v_left(x).flatten(2)
        if self.spatial_softmax == "query":
            query = query.softmax(2)
        if self.spatial_softmax == "value":
            value = value.softmax(2)
        result = query @ value
        if self.spatial_softmax == "result":
            result = result.softmax(2)
        return torch.sigmoid(result.reshape(len(x), 1, *x.shape[2:]))


class PSAp(Polarized):
    """The authors' parallel one."""

    def __init__(self, channels):
        up = nn.Conv2d(channels // 2, channels, 1, bias=False)
        super().__init__(channels, up=up, sequential=False, spatial_softmax="result")


class PSAs(Polarized):
    """The authors' sequential one."""

    def __init__(self, channels):
        up = nn.Sequential(
            nn.Conv2d(channels // 2, channels // 8, 1),
            nn.LayerNorm([channels // 8, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(channels // 8, channels, 1),
        )
        super().__init__(channels, up=up, sequential=True, spatial_softmax="value")


class PolarizedPaper(Polarized):
    """The paper's equations, and the names of the port of them in fightingcv."""

    names = ("ch_wq", "ch_wv", "ch_wz", "sp_wq", "sp_wv")

    def __init__(self, channels, *, sequential=False):
        up = nn.Conv2d(channels // 2, channels, 1)
        super().__init__(channels, up=up, sequential=sequential, spatial_softmax="query", bias=True)
        self.ln = nn.LayerNorm(channels)

    def normed(self, z):
        return self.ln(z.flatten(1))[..., None, None]
