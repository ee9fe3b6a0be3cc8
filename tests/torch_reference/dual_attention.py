"""Article 3's dual attention in PyTorch (mechanisms: A10), with its state dict's names."""

import torch
from torch import nn


class DualAttention(nn.Module):
    def __init__(
        self,
        channels,
        drop_rate=0.0,
        *,
        reduction=8,
        activation=nn.ReLU,
        gate=nn.Sigmoid,
        alpha=1.0,
        beta=1.0,
    ):
        super().__init__()
        self.channel_att = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            activation(),
            nn.Conv2d(channels // reduction, channels, 1),
            gate(),
        )
        self.spatial_att = nn.Sequential(nn.Conv2d(channels, 1, 1), gate())
        self.dropout = nn.Dropout2d(drop_rate)
        self.alpha, self.beta = alpha, beta

    def forward(self, x):
        channel = torch.lerp(torch.ones(()).to(x), self.channel_att(x), self.beta)
        spatial = torch.lerp(torch.ones(()).to(x), self.spatial_att(x), self.alpha)
        return self.dropout(x * channel * spatial)


class ChannelOnly(DualAttention):
    def __init__(self, channels):
        super().__init__(channels)
        del self.spatial_att

    def forward(self, x):
        return x * self.channel_att(x)


class LiteDualAttention(DualAttention):
    """The article's class has no forward; this is DualAttention's."""

    def __init__(self, channels):
        super().__init__(channels, reduction=16, activation=nn.Hardswish, gate=Hardsigmoid)


class Hardsigmoid(nn.Hardsigmoid):
    """torch's own has the slope 1/6 in float32 even for doubles; this one in the dtype of x."""

    def forward(self, x):
        return nn.functional.relu6(x + 3) / 6 if x.dtype == torch.float64 else super().forward(x)
