"""SimAM as the authors' code has it."""

import torch
from torch import nn


class SimAM(nn.Module):
    def __init__(self, e_lambda=1e-4):
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x):
        d = (x - x.mean((2, 3), keepdim=True)) ** 2
        variance = d.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * torch.sigmoid(d / (4 * (variance + self.e_lambda)) + 0.5)
