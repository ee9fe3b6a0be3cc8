"""Article 3's attention residual block in PyTorch (mechanisms: A10), with its names."""

from torch import nn

from tests.torch_reference.dual_attention import DualAttention


class AttnResBlock(nn.Module):
    """The article ignores `reduction`, so there it is always 8."""

    def __init__(self, channels, reduction=8):
        super().__init__()
        self.attn = DualAttention(channels, reduction=reduction)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv(self.attn(x))
