"""Article 2's selective kernel unit in PyTorch (mechanisms: A9a), with its state dict's names."""

from torch import nn


class SkNet(nn.Module):
    """`softmax=False` is the article as it stands: its softmax is created but never called."""

    def __init__(self, channels, ratio=16, *, softmax=False):
        super().__init__()
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5x5 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // ratio, bias=False),
            nn.ReLU(),
            nn.Linear(channels // ratio, 2 * channels, bias=False),
        )
        self.softmax = softmax

    def forward(self, x):
        small, large = self.conv3x3(x), self.conv5x5(x)
        weights = self.fc((small + large).mean(dim=(2, 3))).unflatten(1, (2, -1))
        if self.softmax:
            weights = weights.softmax(dim=1)
        first, second = weights[..., None, None].unbind(1)
        return small * first + large * second
