"""mmcv's GeneralizedAttention in plain PyTorch: all four terms at each pair of positions."""

import torch
from torch import nn
from torch.nn import functional as F


def embed(distance, size):
    """(..., P / 2) sines, then cosines."""
    waves = 1000 ** (torch.arange(size // 4, dtype=distance.dtype) * 4 / size)
    angles = distance[..., None] / waves
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class GeneralizedAttention(nn.Module):
    def __init__(
        self, channels, kind="1111", heads=9, size=None, magnitude=1, q_stride=1, kv_stride=2
    ):
        super().__init__()
        self.terms = [digit == "1" for digit in kind]
        self.heads, self.size, self.magnitude = heads, size or channels, magnitude
        self.q_stride, self.kv_stride = q_stride, kv_stride
        content, position, saliency, bias = self.terms
        width = channels // heads * heads
        if content or position:
            self.query_conv = nn.Conv2d(channels, width, 1, bias=False)
        if content or saliency:
            self.key_conv = nn.Conv2d(channels, width, 1, bias=False)
        self.value_conv = nn.Conv2d(channels, width, 1, bias=False)
        if position or bias:
            self.appr_geom_fc_x = nn.Linear(self.size // 2, width, bias=False)
            self.appr_geom_fc_y = nn.Linear(self.size // 2, width, bias=False)
        if saliency:
            self.appr_bias = nn.Parameter(torch.zeros(width))
        if bias:
            self.geom_bias = nn.Parameter(torch.zeros(width))
        self.proj_conv = nn.Conv2d(width, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def by_head(self, x):
        """(B, heads, d, h, w), or for vectors (heads, d)."""
        return x.unflatten(x.ndim - 3 if x.ndim > 1 else 0, (self.heads, -1))

    def relative(self, size, kv_size, dtype):
        """r: (y, x, row, column, heads, d)."""

        def along(fc, length, kv_length):
            here = torch.arange(length, dtype=dtype) * self.q_stride
            there = torch.arange(kv_length, dtype=dtype) * self.kv_stride
            distance = (here[:, None] - there) * self.magnitude
            return fc(embed(distance, self.size)).unflatten(2, (self.heads, -1))

        rows = along(self.appr_geom_fc_y, size[0], kv_size[0])[:, None, :, None]
        columns = along(self.appr_geom_fc_x, size[1], kv_size[1])[None, :, None]
        return (rows + columns) / 2**0.5

    def forward(self, x):
        content, position, saliency, bias = self.terms
        queries = x[:, :, :: self.q_stride, :: self.q_stride]
        sources = x[:, :, :: self.kv_stride, :: self.kv_stride]
        size, kv_size = queries.shape[2:], sources.shape[2:]
        energy = x.new_zeros(len(x), self.heads, *size, *kv_size)
        if content or position:
            query = self.by_head(self.query_conv(queries))
        if content or saliency:
            key = self.by_head(self.key_conv(sources))
        if position or bias:
            relative = self.relative(size, kv_size, x.dtype)
        if content:
            energy = energy + torch.einsum("bhdyx,bhdrc->bhyxrc", query, key)
        if position:
            energy = energy + torch.einsum("bhdyx,yxrchd->bhyxrc", query, relative)
        if saliency:
            u = self.by_head(self.appr_bias)
            energy = energy + torch.einsum("hd,bhdrc->bhrc", u, key)[:, :, None, None]
        if bias:
            energy = energy + torch.einsum(
                "hd,yxrchd->hyxrc", self.by_head(self.geom_bias), relative
            )
        weights = energy.flatten(4).softmax(dim=-1).unflatten(4, kv_size)
        value = self.by_head(self.value_conv(sources))
        y = torch.einsum("bhyxrc,bhdrc->bhdyx", weights, value).flatten(1, 2)
        y = self.proj_conv(y)
        if self.q_stride > 1:
            y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.gamma * y + x
