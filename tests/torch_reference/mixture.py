"""Dynamic convolution by its popular port, and timm's CondConv with a routing (mechanisms: B9)."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.torch_reference.torchvision_shim import timm


class DynamicConv2d(nn.Module):
    """`hidden` is the width of the attention's first layer."""

    def __init__(
        self, in_planes, planes, hidden, *, K=4, stride=1, dilation=1, groups=1, bias=True, tau=1.0
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(K, planes, in_planes // groups, 3, 3))
        if bias:
            self.bias = nn.Parameter(torch.empty(K, planes))
        self.attention = nn.Module()
        self.attention.fc1 = nn.Conv2d(in_planes, hidden, 1, bias=False)
        self.attention.fc2 = nn.Conv2d(hidden, K, 1)
        self.tau = tau
        self.with_bias = bias
        self.options = {
            "stride": stride,
            "padding": dilation,
            "dilation": dilation,
            "groups": groups,
        }

    def forward(self, x):
        hidden = self.attention.fc1(x.mean(dim=(2, 3), keepdim=True)).relu()
        pi = (self.attention.fc2(hidden).flatten(1) / self.tau).softmax(dim=1)
        samples = []
        for shares, sample in zip(pi, x, strict=True):
            weight = torch.einsum("k,k...->...", shares, self.weight)
            bias = shares @ self.bias if self.with_bias else None
            samples.append(F.conv2d(sample[None], weight, bias, **self.options))
        return torch.cat(samples)


class RoutedCondConv(nn.Module):
    """timm's CondConv2d, routed as its CondConvResidual does."""

    def __init__(self, in_channels, out_channels, *, experts=4, **fields):
        super().__init__()
        self.routing_fn = nn.Linear(in_channels, experts)
        self.conv = timm.layers.CondConv2d(in_channels, out_channels, num_experts=experts, **fields)

    def forward(self, x):
        return self.conv(x, self.routing_fn(x.mean(dim=(2, 3))).sigmoid())
