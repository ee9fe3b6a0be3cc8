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


class GroupedSE(nn.Module):
    """Squeeze-and-excitation of which every layer is a grouped 1x1 convolution."""

    def __init__(self, channel, hidden, groups):
        super().__init__()
        self.fc1 = nn.Conv2d(channel, hidden, 1, groups=groups)
        self.fc2 = nn.Conv2d(hidden, channel, 1, groups=groups)

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(z).relu()).sigmoid()
