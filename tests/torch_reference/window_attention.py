"""Window attention over maps (N, C, H, W) in PyTorch: timm's and torchvision's."""

from tests.torch_reference.torchvision_shim import timm, torchvision

SwinTransformerBlock = timm.models.swin_transformer.SwinTransformerBlock
TimmLayer = timm.models.swin_transformer.WindowAttention
TorchvisionLayer = torchvision.models.swin_transformer.ShiftedWindowAttention


class TimmWindowAttention(TimmLayer):
    """timm's layer, with the shift, the padding and the windows of its block."""

    def __init__(self, channels, num_heads, *, shift_size=0, **fields):
        super().__init__(channels, num_heads, **fields)
        self.shift_size = shift_size

    def forward(self, x):
        block = SwinTransformerBlock(
            self.dim,
            tuple(x.shape[2:]),
            self.num_heads,
            window_size=self.window_size,
            shift_size=self.shift_size,
        )
        assert block.window_size == self.window_size, "timm shrinks windows to the map"
        del block.attn
        object.__setattr__(block, "attn", super().forward)
        return block._attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TorchvisionWindowAttention(TorchvisionLayer):
    """torchvision's layer; `buffer=False` leaves the index out of the state dict, as timm does."""

    def __init__(self, channels, num_heads, *, window_size=7, shift_size=0, buffer=False):
        super().__init__(channels, [window_size] * 2, [shift_size] * 2, num_heads)
        index = self.relative_position_index
        self.register_buffer("relative_position_index", index, persistent=buffer)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def masks(height, width, window_size, shift_size):
    """timm's attn_mask: (windows, positions, positions)."""
    return SwinTransformerBlock(8, (height, width), 1, None, window_size, shift_size).attn_mask
