"""Article 0's PSAModule, and the two repairs that keep its parameters."""

import torch
from torch import nn


class PSAModule(nn.Module):
    """`repair` is None for the article's, which needs H*W equal to out_channels."""

    def __init__(self, in_channels, out_channels, repair=None):
        super().__init__()
        self.conv_reduce = nn.Conv2d(in_channels, out_channels, 1)
        self.collect = nn.Conv2d(out_channels, out_channels, 1)
        self.distribute = nn.Conv2d(out_channels, out_channels, 1)
        self.repair = repair

    def forward(self, x):
        x = self.conv_reduce(x)
        b, c, h, w = x.shape
        flat = x.view(b, c, h * w)
        collect = torch.softmax(self.collect(x).view(b, c, -1), dim=-1)
        distribute = torch.softmax(self.distribute(x).view(b, c, -1), dim=1)
        if self.repair == "gather":
            attended = torch.bmm(torch.bmm(flat, collect.permute(0, 2, 1)), distribute)
        else:
            attended = torch.bmm(collect, distribute.permute(0, 2, 1))
            if self.repair == "mix":
                attended = torch.bmm(attended, flat)
        return x + attended.view(b, c, h, w)
