"""PSANet's point-wise spatial attention: each pair of positions has its own predicted weight."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from flaxattn.attention.mechanism import Mechanism, variant
from flaxattn.attention.parts.relative_position import require_size
from flaxattn.errors import InputError, unknown
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.resize import resize_bilinear

# The branches of each direction, and what their submodules' names begin with, as in semseg.
DIRECTIONS = {
    "collect": {"collect": ""},
    "distribute": {"distribute": ""},
    "both": {"collect": "", "distribute": "_p"},
}


class PSANet(Mechanism):
    """A head that returns x and, beside it, `features` channels of collected, distributed context.

    In each branch a position p predicts a logit l_p[q - p] for every other position q by its
    offset, from h_p = relu(norm(reduce(x)))_p alone; with t the target and s a source,

        collect:     a_ts = softmax_s l_t[s - t]        t says what it wants from s
        distribute:  a_ts = softmax_s l_s[t - s]        s says what it has for t
        z_t = sum_s a_ts h_s / normalization_factor     (Eq. 5 to 9, with a softmax over sources)
        y   = [x, relu(norm(proj([z_collect, z_distribute])))]

    Zhao, Zhang, Liu, Shi, Loy, Lin, Jia, "PSANet: Point-wise Spatial Attention Network for Scene
    Parsing", ECCV 2018.

    (N, H, W, C) -> (N, H, W, C + features) in x's dtype. The convolutions, which have no biases,
    and both products over the map take `dtype` or x's and multiply in the platform's default
    precision (see `Conv`), their sums and the softmax are float32 or wider.
    Parameters, m being `hidden`: reduce_0 kernel (1, 1, C, m); attention_0 kernel (1, 1, m, m),
    attention_3 kernel (1, 1, m, mask positions); the same of reduce_p and attention_p for the
    second branch; proj_0 kernel (1, 1, branches * m, features); norms reduce_1, attention_1,
    proj_1. Sows the weights a of each branch: {"collect": (N, targets, sources), ...}.

    Fields:
        features: channels beside x's; the paper takes C, so that the output has 2C.
        hidden: m.
        direction: "collect", "distribute" or "both".
        compact: predict a logit for each absolute position q instead of each offset q - p: a
            quarter of the logits, for maps of one size only.
        mask_size: offsets that have a logit, an odd number of rows and of columns; None for all
            there are on this map, 2h - 1 and 2w - 1 (compact: h and w). The parameters of
            attention_3 depend on it: give it where maps of another size shall follow. Offsets
            outside keep the logit 0 and take their part of the softmax, as in the authors' code.
        shrink_factor: attend on a map of (H - 1) / shrink_factor + 1 rows, and columns likewise;
            the maps are resized bilinearly, corners on corners.
        softmax: normalise the weights over the sources.
        normalization_factor: None for the number of positions of the mask.
        query_chunk: targets whose weights exist at one time, or None for all of them. With it
            memory grows with H * W * hidden * query_chunk instead of (H * W)^2, in the gradients
            too: instead of all logits, those of a target are computed from the rows of
            attention_3 that it needs. Where the weights are asked for, they take their place.
        norm: after each convolution but attention_3; called as
            norm(dtype=..., param_dtype=..., name=...)(x, train). None leaves the ReLU alone.

    Raises InputError for a map that shrinking and growing does not give back (an even one by two),
    an even mask or one without two sides, a compact one of another size than the map, with
    mask_size=None a map of another size than the layer was initialised with, an unknown direction,
    a `normalization_factor` not above zero, and sizes, `shrink_factor` and `query_chunk` below one.
    """

    features: int
    hidden: int = 512
    direction: str = "both"
    compact: bool = False
    mask_size: Sequence[int] | None = None
    shrink_factor: int = 1
    softmax: bool = True
    normalization_factor: float | None = 1.0
    query_chunk: int | None = None
    norm: Callable[..., nn.Module] | None = BatchNorm

    role = "head"
    namings = {"semseg": ()}

    official = variant(
        "The authors' head (semseg, PSANet in Caffe): on maps shrunk by two.",
        shrink_factor=2,
    )

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.direction not in DIRECTIONS:
            raise unknown("direction", self.direction, DIRECTIONS)
        small = self._shrunk_size(x.shape[1:3])
        mask = self._mask_size(small)
        dtype = self.dtype or x.dtype
        factor: float = mask[0] * mask[1]
        if self.normalization_factor is not None:
            factor = self.normalization_factor
        conv = partial(self.convolution, use_bias=False, dtype=dtype)

        def layer(maps: Array, features: int, name: str) -> Array:
            maps = conv(features, name=f"{name}_0")(maps)
            if self.norm is not None:
                norm = self.norm(dtype=dtype, param_dtype=self.param_dtype, name=f"{name}_1")
                maps = norm(maps, train)
            return jax.nn.relu(maps)

        contexts, sown = [], {}
        for branch, suffix in DIRECTIONS[self.direction].items():
            reduced = layer(x, self.hidden, f"reduce{suffix}")
            if self.shrink_factor > 1:
                reduced = resize_bilinear(reduced, small, align_corners=True)
            predictors = layer(reduced, self.hidden, f"attention{suffix}")
            predict = conv(mask[0] * mask[1], name=f"attention{suffix}_3")
            if self.mask_size is None:
                require_size(predict, "kernel", (1, 1, self.hidden, mask[0] * mask[1]))
            values = reduced.reshape(x.shape[0], -1, self.hidden)
            if self.query_chunk is None or self.is_mutable_collection("intermediates"):
                weights = self._weights(predictors, predict, mask, branch)
                context = _mean(weights, values)
                sown[branch] = weights
            else:
                context = self._in_chunks(predictors, predict, values, mask, branch)
            contexts.append((context / factor).astype(dtype).reshape(reduced.shape))
        if sown:
            self.sow("intermediates", "attention", sown)

        y = layer(jnp.concatenate(contexts, axis=-1), self.features, "proj")
        if self.shrink_factor > 1:
            y = resize_bilinear(y, x.shape[1:3], align_corners=True)
        return jnp.concatenate([x, y.astype(x.dtype)], axis=-1)

    def _shrunk_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        for field in ("features", "hidden", "shrink_factor", "query_chunk"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"{field}={value} is below one: use 1 or more.")
        scale = self.normalization_factor
        if scale is not None and not scale > 0:
            raise InputError(
                f"normalization_factor={scale} is not above zero: use such as 1.0, or None."
            )
        factor = self.shrink_factor
        if any((length - 1) % factor for length in size):
            raise InputError(
                f"shrink_factor={factor} does not give a map of {size[0]}x{size[1]} back: use maps "
                f"whose sizes less one are multiples of {factor}, or shrink_factor=1."
            )
        return tuple((length - 1) // factor + 1 for length in size)

    def _mask_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.mask_size is None:
            return size if self.compact else tuple(2 * length - 1 for length in size)
        mask = tuple(self.mask_size)
        if len(mask) != 2:
            raise InputError(f"mask_size={mask} does not have two sides: give rows and columns.")
        if self.compact and mask != size:
            raise InputError(
                f"mask_size={mask} is not that of the map to attend on, which a compact mask must "
                f"have: use {size}, or compact=False."
            )
        if not self.compact and any(length < 1 or length % 2 == 0 for length in mask):
            raise InputError(
                f"mask_size={mask} has no offset in its middle: use odd numbers, at most "
                f"{tuple(2 * length - 1 for length in size)} on this map."
            )
        return mask

    def _offsets(self, p: Array, q: Array, size: Sequence[int], mask: Sequence[int]) -> Array:
        """Which of p's logits is about q; one more than there are if none is."""
        if self.compact:
            return jnp.broadcast_to(q, jnp.broadcast_shapes(p.shape, q.shape))
        row = q // size[1] - p // size[1] + (mask[0] - 1) // 2
        column = q % size[1] - p % size[1] + (mask[1] - 1) // 2
        inside = (row >= 0) & (row < mask[0]) & (column >= 0) & (column < mask[1])
        return jnp.where(inside, row * mask[1] + column, mask[0] * mask[1])

    def _normalised(self, energy: Array) -> Array:
        energy = energy.astype(at_least_float32(energy.dtype))
        return jax.nn.softmax(energy) if self.softmax else energy

    def _weights(self, predictors, predict, mask, branch) -> Array:
        """(N, targets, sources)."""
        batch, *size, _ = predictors.shape
        positions = size[0] * size[1]
        if self.compact:
            energy = predict(predictors).reshape(batch, positions, positions)
        else:
            energy = _of_pairs(predictors, _kernel(predict, predictors).reshape(-1, *mask))
        return self._normalised(energy.swapaxes(1, 2) if branch == "distribute" else energy)

    def _in_chunks(self, predictors, predict, values, mask, branch) -> Array:
        """The context of `query_chunk` targets at a time, each from its own rows of the kernel."""
        batch, *size, hidden = predictors.shape
        wide = at_least_float32(predictors.dtype)
        positions = jnp.arange(size[0] * size[1])
        rows = jnp.pad(_kernel(predict, predictors).T, ((0, 1), (0, 0)))
        predictors = predictors.reshape(batch, -1, hidden)

        @jax.checkpoint
        def one(target: Array) -> Array:
            if branch == "distribute":
                about, by = self._offsets(positions, target, size, mask), predictors
            else:
                about, by = (
                    self._offsets(target, positions, size, mask),
                    predictors[:, target, None],
                )
            by = jnp.broadcast_to(by, values.shape)
            energy = jnp.einsum("nsm,sm->ns", by, rows[about], preferred_element_type=wide)
            return _mean(self._normalised(energy), values)

        chunk = min(self.query_chunk or 1, len(positions))
        return jnp.moveaxis(lax.map(one, positions, batch_size=chunk), 0, 1)


def _kernel(predict: nn.Module, maps: Array) -> Array:
    """Of a 1x1 convolution of such maps: what it makes of the unit vectors."""
    return predict(jnp.eye(maps.shape[-1], dtype=maps.dtype)[None, :, None])[0, :, 0]


def _of_pairs(predictors: Array, kernel: Array) -> Array:
    """Logits [p, q] of (N, h, w, m) by a kernel (m, *mask) of offsets q - p: (N, hw, hw).

    Offsets outside the mask have zero. There is no gather, whose gradient a TPU adds up one by one.
    """
    batch, height, width, hidden = predictors.shape
    _, *mask = kernel.shape
    rows, columns = 2 * height - 1, 2 * width - 1
    down, right = (rows - mask[0]) // 2, (columns - mask[1]) // 2
    zero = np.zeros((), kernel.dtype)
    kernel = lax.pad(kernel, zero, [(0, 0, 0), (down, down, 0), (right, right, 0)])
    # Each row of positions has its own rows of offsets.
    kernels = [kernel[:, height - 1 - i : rows - i].reshape(hidden, -1) for i in range(height)]
    logits = jnp.einsum("nijm,imo->nijo", predictors, jnp.stack(kernels))
    # Rows one longer than they are read again: each position's logits move one place further than
    # those of the position before, and that makes columns of offsets.
    step = height * columns + width - 1
    logits = jnp.pad(logits, ((0, 0), (0, 0), (0, 0), (0, width)))
    logits = logits.reshape(batch, height, -1)[..., : width * step]
    logits = logits.reshape(batch, height, width, step)[..., width - 1 :]
    pairs = logits.reshape(batch, height, width, height, columns)[..., :width]
    return pairs.reshape(batch, height * width, height * width)


def _mean(weights: Array, values: Array) -> Array:
    """(N, ..., sources) and (N, sources, m) -> (N, ..., m)."""
    return jnp.einsum(
        "n...s,nsm->n...m",
        weights.astype(values.dtype),
        values,
        preferred_element_type=at_least_float32(values.dtype),
    )
