"""ResNeSt's split attention as its authors build it (mechanisms: B8)."""

from torch import nn


class SplAtConv2d(nn.Module):
    def __init__(self, in_channels, channels, *, groups=1, radix=2, stride=1, dilation=1):
        super().__init__()
        hidden = max(in_channels * radix // 4, 32)
        self.radix, self.groups = radix, groups
        self.conv = nn.Conv2d(
            in_channels,
            channels * radix,
            3,
            stride,
            padding=dilation,
            dilation=dilation,
            groups=groups * radix,
            bias=False,
        )
        self.bn0 = nn.BatchNorm2d(channels * radix)
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, channels * radix, 1, groups=groups)

    def forward(self, x):
        chunks = self.bn0(self.conv(x)).relu().unflatten(1, (self.radix, -1))
        z = chunks.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        logits = self.fc2(self.bn1(self.fc1(z)).relu())
        if self.radix == 1:
            return chunks[:, 0] * logits.sigmoid()
        shares = logits.unflatten(1, (self.groups, self.radix, -1)).softmax(dim=2)
        return (chunks * shares.transpose(1, 2).flatten(2, 3)).sum(dim=1)
