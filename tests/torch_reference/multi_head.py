"""Multi-head self-attention over a map in PyTorch: timm's layer, and torch's own."""

from torch import nn

from tests.torch_reference.torchvision_shim import timm


class TimmAttention(timm.layers.Attention):
    """timm's, over the positions of a map (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class TorchAttention(nn.MultiheadAttention):
    """torch's, over the positions of a map; `ignored` is (N, HW), True where a key is left out."""

    def __init__(self, channels, num_heads):
        super().__init__(channels, num_heads, batch_first=True)

    def forward(self, x, ignored=None):
        tokens = x.flatten(2).transpose(1, 2)
        y, _ = super().forward(tokens, tokens, tokens, key_padding_mask=ignored)
        return y.transpose(1, 2).reshape(x.shape)
