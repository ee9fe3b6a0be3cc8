"""BAM in PyTorch (mechanisms: B2): the authors' code and the paper's equations, by their names."""

import torch
from torch import nn
from torch.nn import functional as F


class BAM(nn.Module):
    """`paper` adds and normalises each branch's last layer, else all others and multiplies.

    `square_pool` averages as the authors' code does, over as many columns as the map has rows.
    """

    def __init__(self, channels, reduction=16, *, paper=False, square_pool=False):
        super().__init__()
        hidden = channels // reduction
        self.paper, self.square_pool = paper, square_pool

        self.channel_att, self.spatial_att = nn.Module(), nn.Module()
        c = self.channel_att.gate_c = nn.Sequential()
        c.add_module("gate_c_fc_0", nn.Linear(channels, hidden))
        if not paper:
            c.add_module("gate_c_bn_1", nn.BatchNorm1d(hidden))
        c.add_module("gate_c_relu_1", nn.ReLU())
        c.add_module("gate_c_fc_final", nn.Linear(hidden, channels))
        if paper:
            c.add_module("gate_c_bn_final", nn.BatchNorm1d(channels))

        s = self.spatial_att.gate_s = nn.Sequential()
        for layer, conv in (
            ("reduce0", nn.Conv2d(channels, hidden, 1)),
            ("di_0", nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4)),
            ("di_1", nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4)),
        ):
            s.add_module(f"gate_s_conv_{layer}", conv)
            if not paper:
                s.add_module(f"gate_s_bn_{layer}", nn.BatchNorm2d(hidden))
            s.add_module(f"gate_s_relu_{layer}", nn.ReLU())
        s.add_module("gate_s_conv_final", nn.Conv2d(hidden, 1, 1))
        if paper:
            s.add_module("gate_s_bn_final", nn.BatchNorm2d(1))

    def forward(self, x):
        if self.square_pool:
            pooled = F.avg_pool2d(x, x.size(2), stride=x.size(2)).flatten(1)
        else:
            pooled = x.mean((2, 3))
        channel = self.channel_att.gate_c(pooled)[:, :, None, None]
        spatial = self.spatial_att.gate_s(x)
        return x * (1 + torch.sigmoid(channel + spatial if self.paper else channel * spatial))
