"""Selective kernel units: the paper's, PytorchInsight's and article 2's (mechanisms: A9)."""

from torch import nn


class SelectiveKernelUnit(nn.Module):
    """The paper's, for any number of branches; state dict by timm's names."""

    def __init__(self, channels, branches=2, *, groups=32, stride=1, momentum=0.1):
        super().__init__()
        hidden = max(channels // 16, 32)

        def norm(width):
            return nn.BatchNorm2d(width, momentum=momentum)

        self.paths = nn.ModuleList()
        for d in range(1, branches + 1):
            path = nn.Module()
            path.conv = nn.Conv2d(
                channels, channels, 3, stride, padding=d, dilation=d, groups=groups, bias=False
            )
            path.bn = norm(channels)
            self.paths.append(path)
        self.attn = nn.Module()
        self.attn.fc_reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.attn.bn = norm(hidden)
        self.attn.fc_select = nn.Conv2d(hidden, branches * channels, 1, bias=False)

    def forward(self, x):
        answers = [path.bn(path.conv(x)).relu() for path in self.paths]
        z = sum(answers).mean(dim=(2, 3), keepdim=True)
        logits = self.attn.fc_select(self.attn.bn(self.attn.fc_reduce(z)).relu())
        weights = logits.unflatten(1, (len(answers), -1)).softmax(dim=1)
        return sum(a * u for a, u in zip(weights.unbind(1), answers, strict=True))


class SelectiveKernelInsight(nn.Module):
    """PytorchInsight's, a part of its Bottleneck there."""

    def __init__(self, planes):
        super().__init__()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2g = nn.Conv2d(planes, planes, 3, padding=1, groups=32, bias=False)
        self.bn2g = nn.BatchNorm2d(planes)
        self.conv_fc1 = nn.Conv2d(planes, planes // 16, 1, bias=False)
        self.bn_fc1 = nn.BatchNorm2d(planes // 16)
        self.conv_fc2 = nn.Conv2d(planes // 16, 2 * planes, 1, bias=False)

    def forward(self, x):
        dense, grouped = self.bn2(self.conv2(x)).relu(), self.bn2g(self.conv2g(x)).relu()
        z = (dense + grouped).mean(dim=(2, 3), keepdim=True)
        logits = self.conv_fc2(self.bn_fc1(self.conv_fc1(z)).relu())
        first, second = logits.unflatten(1, (2, -1)).softmax(dim=1).unbind(1)
        return dense * first + grouped * second


class SkNet(nn.Module):
    """Article 2's. `softmax=False` is as it stands: its softmax is created but never called."""

    def __init__(self, channels, ratio=16, *, softmax=False):
        super().__init__()
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5x5 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // ratio, bias=False),
            nn.ReLU(),
            nn.Linear(channels // ratio, 2 * channels, bias=False),
        )
        self.softmax = softmax

    def forward(self, x):
        small, large = self.conv3x3(x), self.conv5x5(x)
        weights = self.fc((small + large).mean(dim=(2, 3))).unflatten(1, (2, -1))
        if self.softmax:
            weights = weights.softmax(dim=1)
        first, second = weights[..., None, None].unbind(1)
        return small * first + large * second
