"""Self-attention within windows, plain or shifted, as in Swin."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.attend import attend
from flaxattn.attention.parts.blocks import cut, join
from flaxattn.attention.parts.heads import head_features, merge_heads, split_parts
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer
from flaxattn.layers.fields import checked

HEAD_FEATURES = 32  # of each head, in all of the paper's networks
LARGEST_WINDOW = 64  # all pairs of its positions are numbered, in a table
MASKED = -100.0  # added to the energy between positions that the shift made neighbours


class WindowAttention(Mechanism):
    """Multi-head self-attention among the positions of a window, with a bias for each offset.

        a_ij = softmax_j(q_i . k_j / sqrt(d) + B[i - j])        (Eq. 4), i and j in one window
        y_i  = W_proj [sum_j a_ij v_j in each head]

    Windows tile the map; shifted ones start `shift_size` further down and right, and what is left
    over at the edges attends among itself: the map is rolled, and energies across its seams get
    -100. Networks alternate between the two.

    Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, "Swin Transformer: Hierarchical Vision Transformer
    using Shifted Windows", ICCV 2021, arXiv:2103.14030.

    (N, H, W, C) -> (N, H, W, C) in x's dtype, without x itself: adding it, and the norm before, are
    the surrounding block's. The projections and both products take `dtype` or x's and multiply in
    the platform's default precision, their sums and the softmax are float32 or wider. Memory grows
    with H * W. Parameters: qkv kernel (C, 3C), proj kernel (C, C), and their biases;
    relative_position_bias_table ((2 * window_size - 1)^2, num_heads).
    Sows the weights (N, windows, num_heads, window_size^2, window_size^2), which sum to one.

    Maps that the windows do not tile are padded with zeros below and on the right. As in the
    references padding is not masked: its keys and values are the biases of qkv. An axis that fits
    into one window is not shifted.

    Fields:
        num_heads: heads, a divisor of C; None: heads of 32 channels.
        window_size: side of a window.
        shift_size: of the windows, 0 for plain ones; the paper's shifted ones have
            window_size // 2.
        qkv_bias: biases of queries, keys and values.
        roll_first: roll the map before padding it. Then the seam lies inside a window wherever
            there is padding, unmasked, and opposite edges of the map see each other.

    Deviation: timm and the authors' classifier make a window larger than the map as small as the
    map, and its table too: give that `window_size` to load such weights.

    Raises InputError where the heads do not divide C, for a `window_size` outside 1 to 64, and for
    a `shift_size` not within 0 and window_size - 1.
    """

    num_heads: int | None = None
    window_size: int = 7
    shift_size: int = 0
    qkv_bias: bool = True
    roll_first: bool = False
    _: KW_ONLY
    kernel_init: Initializer = nn.initializers.normal(0.02)

    role = "context"
    namings = {
        "timm": (),
        "official": (
            ("relative_position_index", "", "derived"),
            ("attn_mask", "", "derived"),
        ),
    }

    @classmethod
    @checked
    def shifted(cls, *, window_size: int = 7, **fields) -> "WindowAttention":
        """The shifted windows of every second block: by half a window."""
        return cls(window_size=window_size, **{"shift_size": window_size // 2, **fields})

    timm = variant(
        "timm's, which rolls a map before it pads it: the default unless shift_size is above 0.",
        roll_first=True,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        _, height, width, features = x.shape
        heads = self._heads(features)
        size = self.window_size
        if not 1 <= size <= LARGEST_WINDOW:
            raise InputError(f"window_size={size} must be 1 to {LARGEST_WINDOW}, such as 7.")
        if not 0 <= self.shift_size < size:
            raise InputError(
                f"shift_size={self.shift_size} does not lie within a window: use 0 to {size - 1}."
            )
        shifts = tuple(self.shift_size if side > size else 0 for side in (height, width))
        padding = [(0, 0), (0, -height % size), (0, -width % size), (0, 0)]

        dtype = self.dtype or x.dtype
        dense: Callable[..., nn.Dense] = partial(nn.Dense, dtype=dtype, **self.initialisers)

        def roll(x: Array, sign: int) -> Array:
            return jnp.roll(x, [sign * shift for shift in shifts], (1, 2)) if any(shifts) else x

        maps = jnp.pad(roll(x, -1), padding) if self.roll_first else roll(jnp.pad(x, padding), -1)
        padded_height, padded_width = maps.shape[1:3]
        windows = cut(maps, size)
        qkv = dense(3 * features, use_bias=self.qkv_bias, name="qkv")(windows)
        query, key, value = split_parts(qkv, 3, heads)

        table = self.param(
            "relative_position_bias_table",
            nn.initializers.normal(0.02),
            ((2 * size - 1) ** 2, heads),
            self.param_dtype,
        )
        bias = jnp.moveaxis(table[_relative_position_index(size)], -1, 0)[None, None]
        mask = _seams((padded_height, padded_width), size, shifts)

        def softmax(energy: Array) -> Array:
            energy += bias.astype(energy.dtype)
            return jax.nn.softmax(energy if mask is None else energy + mask.astype(energy.dtype))

        context = attend(
            self, query, key, value, scale=1 / math.sqrt(features // heads), normalise=softmax
        )
        y = dense(features, name="proj")(merge_heads(context.astype(dtype)))
        y = join(y, padded_height, padded_width)
        y = y[:, :height, :width] if self.roll_first else y
        return roll(y, 1)[:, :height, :width].astype(x.dtype)

    def _heads(self, features: int) -> int:
        if self.num_heads is not None:
            head_features(features, self.num_heads)
            return self.num_heads
        if features % HEAD_FEATURES:
            raise InputError(
                f"num_heads=None makes heads of {HEAD_FEATURES} channels, and {features} are not "
                f"a multiple of that: give num_heads, a divisor of {features}."
            )
        return features // HEAD_FEATURES


def _relative_position_index(size: int) -> np.ndarray:
    """The row of the table for each pair (i, j) of a window's positions: (size^2, size^2)."""
    rows, columns = (grid.reshape(-1) for grid in np.indices((size, size)))
    down, right = (axis[:, None] - axis + size - 1 for axis in (rows, columns))
    return down * (2 * size - 1) + right


def _seams(sides: tuple[int, ...], size: int, shifts: tuple[int, ...]) -> np.ndarray | None:
    """What is added to energies across the seams of a rolled map, (1, windows, 1, P, P)."""
    if not any(shifts):
        return None
    # Along each axis: the whole windows, the part before the seam, the part behind it.
    rows, columns = (
        (np.arange(side) >= side - size).astype(int) + (np.arange(side) >= side - shift)
        if shift
        else np.zeros(side, int)
        for side, shift in zip(sides, shifts, strict=True)
    )
    regions = (3 * rows[:, None] + columns)[None, :, :, None]
    regions = np.asarray(cut(regions, size))[0, :, :, 0]
    apart = regions[:, :, None] != regions[:, None, :]
    return np.where(apart, MASKED, 0.0)[None, :, None]
