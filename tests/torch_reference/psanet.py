"""The PSA head in plain PyTorch (mechanisms: A4), with semseg's names and without its CUDA op."""

import torch
from torch import nn
from torch.nn import functional as F


def point_wise(logits, size, kind):
    """Logits (B, mh, mw, h, w) by offset to (B, sources, targets); zero outside the mask."""
    mask, (height, width) = logits.shape[1:3], size
    # The predicting position (y, x) against each other one: the offset, counted from the mask's
    # first, at which it sees that.
    y, x = torch.arange(height)[:, None, None, None], torch.arange(width)[:, None, None]
    i = torch.arange(height)[:, None] - y + (mask[0] - 1) // 2
    j = torch.arange(width) - x + (mask[1] - 1) // 2
    seen = (i >= 0) & (i < mask[0]) & (j >= 0) & (j < mask[1])
    out = logits[:, i.clamp(0, mask[0] - 1), j.clamp(0, mask[1] - 1), y, x] * seen
    out = out.reshape(len(logits), height * width, height * width)
    return out if kind == "distribute" else out.transpose(1, 2)


class PSA(nn.Module):
    """`mask` is the mask's (rows, columns); kinds are one or both of collect and distribute."""

    def __init__(
        self,
        channels,
        mask,
        mid=8,
        kinds=("collect", "distribute"),
        compact=False,
        shrink=1,
        factor=1.0,
        softmax=True,
    ):
        super().__init__()
        self.mask, self.kinds, self.compact, self.softmax = mask, kinds, compact, softmax
        self.shrink = shrink
        self.factor = mask[0] * mask[1] if factor is None else factor

        def layer(inputs, outputs):
            return (
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )

        for suffix in ("", "_p")[: len(kinds)]:
            self.add_module(f"reduce{suffix}", nn.Sequential(*layer(channels, mid)))
            last = nn.Conv2d(mid, mask[0] * mask[1], 1, bias=False)
            self.add_module(f"attention{suffix}", nn.Sequential(*layer(mid, mid), last))
        self.proj = nn.Sequential(*layer(mid * len(kinds), channels))

    def branch(self, x, kind, suffix):
        x = getattr(self, f"reduce{suffix}")(x)
        if self.shrink > 1:
            size = [(length - 1) // self.shrink + 1 for length in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        logits = getattr(self, f"attention{suffix}")(x)
        if self.compact:
            energy = logits.flatten(2)
            energy = energy.transpose(1, 2) if kind == "distribute" else energy
        else:
            energy = point_wise(logits.unflatten(1, self.mask), x.shape[2:], kind)
        weights = energy.softmax(dim=1) if self.softmax else energy
        return (x.flatten(2) @ weights / self.factor).reshape(x.shape)

    def forward(self, x):
        branches = zip(self.kinds, ("", "_p"), strict=False)
        y = self.proj(torch.cat([self.branch(x, *branch) for branch in branches], dim=1))
        if self.shrink > 1:
            y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True)
        return torch.cat((x, y), dim=1)
