"""Effective squeeze-and-excitation as CenterMask's authors compute it, without fixed slopes.

And with the maxima that timm adds.
"""

from torch import nn
from torch.nn import functional as F


class ESEModule(nn.Module):
    def __init__(self, channel, add_max=False):
        super().__init__()
        self.add_max = add_max
        self.fc = nn.Conv2d(channel, channel, 1)

    def forward(self, x):
        z = F.adaptive_avg_pool2d(x, 1)
        if self.add_max:
            z = (z + F.adaptive_max_pool2d(x, 1)) / 2
        return x * (F.relu6(self.fc(z) + 3) / 6)
