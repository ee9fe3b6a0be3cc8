"""DIANet's attention in PyTorch (mechanisms: B12), with the authors' names for its cell."""

import torch
from torch import nn


class SmallCell(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        self.seq = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(),
            nn.Linear(channels // reduction, 4 * channels),
        )

    def forward(self, z):
        return self.seq(z)


class DIA(nn.Module):
    """The cell of the authors' stage, applied to one map from a zero state, or to several."""

    def __init__(self, channels, reduction=4):
        super().__init__()
        self.w_ih = nn.ModuleList([SmallCell(channels, reduction)])
        self.w_hh = nn.ModuleList([SmallCell(channels, reduction)])

    def forward(self, x):
        return self.over([x])[0]

    def over(self, maps):
        hidden = memory = torch.zeros_like(maps[0][:, :, 0, 0])
        answers = []
        for x in maps:
            gates = self.w_ih[0](x.mean((2, 3))) + self.w_hh[0](hidden)
            i, f, c, o = gates.chunk(4, 1)
            memory = f.sigmoid() * memory + i.sigmoid() * c.tanh()
            hidden = o.sigmoid() * memory.sigmoid()
            answers.append(x * hidden[:, :, None, None])
        return answers
