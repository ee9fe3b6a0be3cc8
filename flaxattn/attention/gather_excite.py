"""Gather-excite: gates read from a neighbourhood of each position, or from the whole map."""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Mechanism, Namings, Part, variant
from flaxattn.attention.parts.bottleneck import bottleneck
from flaxattn.errors import InputError, unknown
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.resize import resize_nearest
from flaxattn.layers.widths import reduced_features

_GATHERS = ("mean", "conv")
_TIMM = tuple(
    (f"{parent}.{layer}{i}", f"{layer}{i}")
    for parent, layer in (("gather", "conv"), ("gather", "norm"), ("mlp", "fc"))
    for i in range(1, 9)
)


class GatherExcite(Mechanism):
    """Gather-excite: each channel is gathered over an extent, and the result, resized, gates x.

        z = gather_e(x)                 (N, H / e, W / e, C), rounded up; (N, 1, 1, C) if global
        y = x * sigmoid(nearest(f(z)))  f(z) = z, or W2 relu(W1 relu(z)) with an MLP

    Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in Convolutional
    Neural Networks", NeurIPS 2018, arXiv:1810.12348.

        | variant     | gather                                         | MLP | parameters       |
        |-------------|------------------------------------------------|-----|------------------|
        | theta_minus | mean over 2e - 1, stride e, or over the map    | no  | none             |
        | theta       | log2(e) depthwise 3x3, stride 2, or of the map | no  | C k              |
        | theta_plus  | as theta, with a ReLU behind                   | yes | + 2Ch + h + C    |
        | timm        | as theta_minus                                 | yes | 2Ch + h + C      |

    where k is 11 log2(e), or H W + 2 for the map, batch norms included. timm's at global extent is
    squeeze-and-excitation.

    (N, H, W, C) -> (N, H, W, C) in x's dtype. The depthwise 3x3 convolutions compute in `dtype` or
    x's; means, the convolution over the map, MLP and gates in float32 or wider.
    Parameters: conv1 ... kernels (3, 3, 1, C), or conv1 kernel (H, W, 1, C), which binds the layer
    to that size of maps; norm1 ...; fc1 kernel (1, 1, C, h), fc2 kernel (1, 1, h, C) with biases.
    Sows the gates (N, h, w, C) as gathered, before they are resized.

    Fields:
        gather: "mean", or "conv": depthwise convolutions, each with `norm`, ReLU between them.
        extent: e, a power of two, or 0 for the whole map.
        mlp: whether an MLP mixes the channels of what is gathered.
        gather_relu: a ReLU between "conv" and the MLP.
        reduction: C / h; h is rounded down.
        divisor: if given, h is C / reduction rounded to a multiple of it, at least one multiple.
        dtype: of the 3x3 convolutions, and of the gates if wider than float32.
        norm: what normalises the convolutions' outputs.

    Deviations: the authors published networks of global extent only, and use their order of layers
    at every extent here. They draw the gathering kernels from N(0, 2 / fan_in) and the MLP's from
    N(0, 0.01^2). timm pads the convolution over the map to return a map; that one is not here, and
    its weights are refused.

    Raises InputError for an unknown `gather`, an `extent` that is not a power of two, a `reduction`
    that leaves no channel, a map of another size than the kernel that gathers it, and, where the
    convolution over the map gathers, for a single sample in train mode (see `BatchNorm`).
    """

    gather: str = "mean"
    extent: int = 0
    mlp: bool = False
    gather_relu: bool = True
    reduction: int = 16
    divisor: int | None = None
    norm: Callable[..., nn.Module] = partial(BatchNorm, momentum=0.95)

    role = "recalibrate"
    theta_minus = variant("The paper's GE-theta-minus: no parameters; the default.")
    theta = variant("The paper's GE-theta: depthwise convolutions gather.", gather="conv")
    theta_plus = variant(
        "The paper's GE-theta-plus: depthwise convolutions gather, an MLP excites.",
        gather="conv",
        mlp=True,
    )
    timm = variant(
        "timm's GatherExcite, which has an MLP unless told otherwise, and no ReLU before it.",
        mlp=True,
        gather_relu=False,
        divisor=1,
        norm=BatchNorm,
    )

    @property
    def namings(self) -> Namings:
        """timm's padded convolution over the map is another function of the same tensors."""
        return {} if self.gather == "conv" and self.extent == 0 else {"timm": _TIMM}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self.require_maps(x)
        if self.gather not in _GATHERS:
            raise unknown("gather", self.gather, _GATHERS)
        if self.extent < 0 or self.extent == 1 or self.extent & (self.extent - 1):
            raise InputError(
                f"extent={self.extent} must be a power of two above one: use 2, 4 or 8, or 0 for "
                f"the whole map."
            )
        features = x.shape[-1]
        wide = at_least_float32(self.dtype or x.dtype)
        z = (self._mean(x) if self.gather == "mean" else self._convolved(x, train)).astype(wide)
        if self.mlp:
            z = bottleneck(
                jax.nn.relu(z) if self.gather == "conv" and self.gather_relu else z,
                reduced_features(features, self.reduction, divisor=self.divisor),
                features,
                dtype=wide,
                **self.initialisers,
            )
        gate = jax.nn.sigmoid(z)
        self.sow("intermediates", "attention", gate)
        return rescale(x, gate if self.extent == 0 else resize_nearest(gate, x.shape[1:3]))

    def _mean(self, x: Array) -> Array:
        """Means over the extent, of those of its positions that lie on the map."""
        if self.extent == 0:
            return average_pool(x)[:, None, None, :]
        e = self.extent
        return nn.avg_pool(
            x.astype(at_least_float32(x.dtype)),
            window_shape=(2 * e - 1, 2 * e - 1),
            strides=(e, e),
            padding=((e - 1, e - 1), (e - 1, e - 1)),
            count_include_pad=False,
        )

    def _convolved(self, x: Array, train: bool) -> Array:
        """Depthwise convolutions, each normalised, with ReLU between them."""
        dtype = self.dtype or x.dtype
        convs: list[Callable[[Array], Array]]
        if self.extent == 0:
            convs = [_WholeMap(dtype=self.dtype, **self.initialisers, name="conv1")]
        else:
            convs = [
                self.convolution(
                    x.shape[-1],
                    kernel_size=3,
                    strides=2,
                    groups=x.shape[-1],
                    use_bias=False,
                    dtype=dtype,
                    name=f"conv{i}",
                )
                for i in range(1, self.extent.bit_length())
            ]
        for i, conv in enumerate(convs, start=1):
            x = conv(x if i == 1 else jax.nn.relu(x))
            x = self.norm(dtype=x.dtype, param_dtype=self.param_dtype, name=f"norm{i}")(x, train)
        return x


class _WholeMap(Part):
    """A depthwise convolution whose kernel is as large as the map: (N, H, W, C) -> (N, 1, 1, C)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, height, width, features = x.shape
        if self.has_variable("params", "kernel"):
            stored: Array = self.get_variable("params", "kernel")
            rows, columns = stored.shape[:2]
            if (rows, columns) != (height, width):
                raise InputError(
                    f"a kernel of {rows}x{columns} cannot gather a map of {height}x{width}: apply "
                    f"the layer to maps of the size that it was initialised with, or choose an "
                    f"extent of 2, 4 or 8."
                )
        shape = (height, width, 1, features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        wide = at_least_float32(self.dtype or x.dtype)
        products = x.astype(wide) * kernel[None, :, :, 0, :].astype(wide)
        return products.sum((1, 2), keepdims=True)
