"""Frequency channel attention: squeeze-and-excitation of several cosine frequencies."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, Neutral, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import InputError, unknown
from flaxattn.layers.conv import per_axis
from flaxattn.layers.pooling import rescale
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.resize import bin_averages
from flaxattn.layers.widths import reduced_features

# The grid in which frequencies (along H, along W) are counted, and the authors' three orders of
# them: by accuracy when used alone, best first; from low to high; by accuracy, worst first.
GRID = 7
LARGEST_DCT = 4096
_ORDERS = {
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 46 63 33 53 55 21 61 52 54 32 31 41 23 "
    "20 65 13",
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 14 23 32 41 50 06 15 24 33 42 51 60 16 "
    "25 34 43",
    "bot": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 64 13 65 20 23 41 31 32 54 52 61 21 55 "
    "53 33 63",
}
FREQUENCIES: dict[str, list[tuple[int, int]]] = {
    f"{order}{count}": [(int(pair[0]), int(pair[1])) for pair in pairs.split()[:count]]
    for order, pairs in _ORDERS.items()
    for count in (1, 2, 4, 8, 16, 32)
}


def cosines(length: int, frequencies: Sequence[int]) -> np.ndarray:
    """cos(pi u (i + 1/2) / length) along an axis, for each frequency u: (length, number of them).

    With the factors that make the discrete cosine transform orthonormal.
    """
    u = np.array(frequencies)
    waves = np.cos(np.pi * u * (np.arange(length)[:, None] + 0.5) / length)
    return waves * np.where(u == 0, 1, np.sqrt(2)) / np.sqrt(length)


class FrequencyChannel(Mechanism):
    """Frequency channel attention: each group of channels is pooled by its own cosine.

        z_c = sum_hw x_hwc B^(u, v)_hw      (u, v): the frequency of c's group of C / n channels
        y   = sigmoid(W2 relu(W1 z)) * x

    Qin, Zhang, Wu, Li, "FcaNet: Frequency Channel Attention Networks", ICCV 2021, arXiv:2012.11879.
    With the one frequency (0, 0), "top1", z is sqrt(HW) times the mean: squeeze-and-excitation.

    (N, H, W, C) -> (N, H, W, C) in x's dtype; the gate is computed in float32 or wider.
    Parameters: fc1 kernel (1, 1, C, h), fc2 kernel (1, 1, h, C). The cosines are constants: the
    authors' tensor dct_layer.weight (C, dct_h, dct_w) is not loaded, and not written.

    Fields:
        reduction: C / h; h is rounded down.
        frequencies: "top", "low" or "bot" and their number n, 1, 2, 4, 8, 16 or 32: the best when
            used alone, the lowest, the worst, as the authors list them in a 7x7 grid.
        dct_size: (dct_h, dct_w), or one number for both; maps of another size are averaged to it
            first. Frequencies count in sevenths of it, rounded down: at 56 (1, 1) stands for
            (8, 8). None takes the largest multiple of 7 that fits into the map along each axis, but
            at least 7; that is 56, 28, 14 and 7 for 224-pixel images, as in the authors' networks.
        dtype: of the gate's arithmetic, if wider than float32.

    Below 7 the authors' rounding turns all frequencies into (0, 0); such a `dct_size` is refused.
    Maps below it are spread out to it, as by the authors. Deviation: the rule for None is ours;
    theirs fixes the size for each stage.

    Raises InputError for unknown frequencies, channels that they do not divide, a `dct_size` below
    7 and where `reduction` leaves no channel.
    """

    reduction: int = 16
    frequencies: str = "top16"
    dct_size: int | Sequence[int] | None = None

    role = "recalibrate"
    namings = {
        "official": (
            ("fc.0", "fc1", "linear"),
            ("fc.2", "fc2", "linear"),
            ("dct_layer.weight", "", "derived"),
        ),
    }
    neutral = Neutral(("fc2",), gain=2.0)

    official = variant(
        "The authors' MultiSpectralAttentionLayer, which wants its dct_size; the default."
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.frequencies not in FREQUENCIES:
            raise unknown("frequencies", self.frequencies, FREQUENCIES)
        frequencies = FREQUENCIES[self.frequencies]
        features = x.shape[-1]
        if features % len(frequencies):
            raise InputError(
                f"frequencies={self.frequencies!r} are {len(frequencies)} and must divide the "
                f"{features} channels: use 'top1', 'top2', ... up to a divisor."
            )
        hidden = reduced_features(features, self.reduction)
        size = self._dct_size(*x.shape[1:3])
        dtype = at_least_float32(self.dtype or x.dtype)

        def waves(axis: int) -> Array:
            """The cosines at the positions along this axis of the map: (L, n)."""
            old, new = x.shape[1 + axis], size[axis]
            grid = cosines(new, [pair[axis] * (new // GRID) for pair in frequencies])
            # A product with the averaged map is one of the map with the averages' transpose.
            return jnp.asarray(bin_averages(old, new).T @ grid, dtype)

        pooled = lax.platform_dependent(
            x.astype(dtype), waves(0), waves(1), cpu=_as_products, default=_as_sums
        )
        logits = bottleneck(
            pooled,
            hidden,
            features,
            use_bias=False,
            dtype=dtype,
            **self.initialisers,
        )
        gate = jax.nn.sigmoid(logits)
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate)

    def _dct_size(self, height: int, width: int) -> tuple[int, int]:
        if self.dct_size is None:
            return max(height // GRID, 1) * GRID, max(width // GRID, 1) * GRID
        height, width = per_axis(self, "dct_size", 2, least=1)
        if min(height, width) < GRID:
            raise InputError(
                f"dct_size={self.dct_size} is below the {GRID}x{GRID} grid of the frequencies, of "
                f"which only the mean would be left: use {GRID} or more."
            )
        if max(height, width) > LARGEST_DCT:
            raise InputError(f"dct_size={self.dct_size} is no map's: use {GRID} to {LARGEST_DCT}.")
        return height, width


def _as_sums(x: Array, rows: Array, columns: Array) -> Array:
    """sum_hw x_hwc rows_h columns_w, of c's group: (N, H, W, C) -> (N, C).

    With the channels left together, so that a TPU fuses it with what makes x.
    """
    each = x.shape[-1] // rows.shape[-1]
    rows, columns = jnp.repeat(rows, each, axis=-1), jnp.repeat(columns, each, axis=-1)
    return jnp.sum(x * rows[None, :, None] * columns[None, None], axis=(1, 2))


def _as_products(x: Array, rows: Array, columns: Array) -> Array:
    """The same as a matrix product for each group, which a CPU computes faster."""
    grouped = x.reshape(*x.shape[:-1], rows.shape[-1], -1)
    basis = rows[:, None] * columns[None]
    pooled = jnp.einsum("nhwfc,hwf->nfc", grouped, basis, precision=lax.Precision.HIGHEST)
    return pooled.reshape(x.shape[0], -1)
