"""Squeeze-and-excitation as articles 0, 1 and 2 write it."""

from torch import nn


class SEBlock(nn.Module):
    """Article 1's SEBlock; with bias=False article 0's SEAttention and article 2's SeNet."""

    def __init__(self, channel, reduction=16, bias=True):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=bias),
            nn.ReLU(),
            nn.Linear(channel // reduction, channel, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]
