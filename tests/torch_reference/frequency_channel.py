"""Multi-spectral channel attention as FcaNet's code has it."""

import math

import torch
from torch import nn
from torch.nn import functional as F

# The authors' 32 frequencies of each kind: a digit for each one's index along H, then along W.
X = {
    "top": [int(digit) for digit in "00600114513000324635526553342261"],
    "low": [int(digit) for digit in "00110221203401301234501234561234"],
    "bot": [int(digit) for digit in "61332412445146256162243355625536"],
}
Y = {
    "top": [int(digit) for digit in "01052020060463526333511242113053"],
    "low": [int(digit) for digit in "01012012230043154321065432106543"],
    "bot": [int(digit) for digit in "64466314456522514350311242115333"],
}


class FcaLayer(nn.Module):
    def __init__(self, channel, dct_h, dct_w, reduction=16, kind="top", count=16):
        super().__init__()
        self.size = (dct_h, dct_w)
        filters = torch.stack(
            [
                torch.outer(wave(u * (dct_h // 7), dct_h), wave(v * (dct_w // 7), dct_w))
                for u, v in zip(X[kind][:count], Y[kind][:count], strict=True)
            ]
        )
        self.dct_layer = nn.Module()
        self.dct_layer.register_buffer("weight", filters.repeat_interleave(channel // count, dim=0))
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        pooled = F.adaptive_avg_pool2d(x, self.size) if x.shape[2:] != self.size else x
        return x * self.fc((pooled * self.dct_layer.weight).sum((2, 3)))[:, :, None, None]


def wave(frequency, length):
    """The basis vector of the orthonormal discrete cosine transform."""
    t = torch.arange(length, dtype=torch.float64)
    factor = math.sqrt((2 if frequency else 1) / length)
    return factor * torch.cos(math.pi * frequency * (t + 0.5) / length)
