"""The non-local block as AlexHex7, mmcv and the authors write it (mechanisms: A8)."""

import torch
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def pool(dimension):
    return {
        1: nn.MaxPool1d(2),
        2: nn.MaxPool2d((2, 2)),
        3: nn.MaxPool3d((1, 2, 2)),
    }[dimension]


def weigh(mode, query, key, concat_project=None, scale=1.0):
    """(B, d, Q) and (B, d, K) to (B, Q, K)."""
    if mode == "concatenation":
        size = (-1, -1, query.shape[2], key.shape[2])
        pairs = torch.cat((query[..., None].expand(size), key[:, :, None].expand(size)), dim=1)
        return concat_project(pairs)[:, 0].relu() / key.shape[2]
    energy = scale * query.transpose(1, 2) @ key
    return energy / key.shape[2] if mode == "dot_product" else energy.softmax(dim=2)


class AlexHex7(nn.Module):
    def __init__(
        self, channels, mode="embedded_gaussian", dimension=2, sub_sample=True, bn_layer=True
    ):
        super().__init__()
        conv, width = CONV[dimension], channels // 2
        self.mode = mode

        def sampled(module):
            return nn.Sequential(module, pool(dimension)) if sub_sample else module

        self.g = sampled(conv(channels, width, 1))
        self.W = conv(width, channels, 1)
        if bn_layer:
            self.W = nn.Sequential(self.W, NORM[dimension](channels))
        if mode == "gaussian":
            self.theta = nn.Identity()
            self.phi = pool(dimension) if sub_sample else nn.Identity()
        else:
            self.theta = conv(channels, width, 1)
            self.phi = sampled(conv(channels, width, 1))
        if mode == "concatenation":
            self.concat_project = nn.Sequential(nn.Conv2d(2 * width, 1, 1, bias=False))

    def forward(self, x):
        query, key, value = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        weights = weigh(self.mode, query, key, getattr(self, "concat_project", None))
        y = value @ weights.transpose(1, 2)
        return x + self.W(y.unflatten(2, x.shape[2:]))


class ConvModule(nn.Module):
    def __init__(self, channels, features, norm=False, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(channels, features, 1, bias=bias)
        if norm:
            self.bn = nn.BatchNorm2d(features)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) if hasattr(self, "bn") else x


class MMCV(nn.Module):
    def __init__(self, channels, mode="embedded_gaussian", sub_sample=False, norm=False):
        super().__init__()
        width = channels // 2
        self.mode = mode
        self.scale = width**-0.5 if mode == "embedded_gaussian" else 1.0

        def sampled(module):
            return nn.Sequential(module, pool(2)) if sub_sample else module

        self.g = sampled(ConvModule(channels, width))
        self.conv_out = ConvModule(width, channels, norm=norm, bias=not norm)
        self.theta = ConvModule(channels, width)
        self.phi = sampled(ConvModule(channels, width))
        if mode == "concatenation":
            self.concat_project = ConvModule(2 * width, 1, bias=False)

    def forward(self, x):
        query, key, value = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        weights = weigh(
            self.mode, query, key, getattr(self, "concat_project", None), scale=self.scale
        )
        y = value @ weights.transpose(1, 2)
        return x + self.conv_out(y.unflatten(2, x.shape[2:]))


class Official(nn.Module):
    """The Caffe2 code in torch: one pooled map for keys and values."""

    def __init__(self, channels):
        super().__init__()
        width = channels // 2
        self.theta = nn.Conv2d(channels, width, 1)
        self.phi = nn.Conv2d(channels, width, 1)
        self.g = nn.Conv2d(channels, width, 1)
        self.out = nn.Conv2d(width, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.scale = width**-0.5

    def forward(self, x):
        pooled = nn.functional.max_pool2d(x, 2)
        query, key, value = (
            f(y).flatten(2) for f, y in ((self.theta, x), (self.phi, pooled), (self.g, pooled))
        )
        weights = weigh("embedded_gaussian", query, key, scale=self.scale)
        y = value @ weights.transpose(1, 2)
        return x + self.bn(self.out(y.unflatten(2, x.shape[2:])))
