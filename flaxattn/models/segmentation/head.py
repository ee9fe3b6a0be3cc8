"""What the segmentation heads have in common."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from flaxattn.attention.mechanism import Namings, Part
from flaxattn.layers.norm import BatchNorm
from flaxattn.layers.precision import at_least_float32


class Head(Part, kw_only=True):
    """Class scores at each position of a map: (N, H, W, C) -> (N, H, W, num_classes).

    The scores are float32 or wider, and so is the arithmetic of the layers that compute them; all
    other layers take `dtype` or the map's.

    Fields, all given by keyword:
        num_classes: channels of the scores.
        norm: makes a normalisation from (dtype=, param_dtype=, name=), to be called with
            (x, train).
    """

    num_classes: int
    norm: Callable[..., nn.Module] = BatchNorm

    # The paths of the layers that compute scores.
    score_names: ClassVar[tuple[str, ...]] = ("score",)

    @property
    def namings(self) -> Namings:
        """The renames of each source of weights that has this head."""
        return {}

    def scores(self, *maps: Array, train: bool = False) -> dict[str, Array]:
        """The scores "out", and under other names what else the head is to be trained by."""
        return {"out": self(*maps, train=train)}

    @nn.nowrap
    def normed_conv(
        self,
        x: Array,
        features: int,
        kernel_size: int = 1,
        *,
        names: tuple[str, str],
        train: bool,
        activation: Callable[[Array], Array] = jax.nn.relu,
        **fields: Any,
    ) -> Array:
        """A convolution and a normalisation with these names, and an activation.

        `fields` are the convolution's others; it has no bias unless they say so.
        """
        dtype = self.dtype or x.dtype
        conv_name, norm_name = names
        fields = {"use_bias": False, "dtype": dtype, "name": conv_name, **fields}
        x = self.convolution(features, kernel_size, **fields)(x)
        norm = self.norm(dtype=dtype, param_dtype=self.param_dtype, name=norm_name)
        return activation(norm(x, train))

    @nn.nowrap
    def score(self, x: Array, *, name: str) -> Array:
        """The scores of a map's positions, by a 1x1 convolution of that name."""
        dtype: DTypeLike = at_least_float32(self.dtype or x.dtype)
        return self.convolution(self.num_classes, dtype=dtype, name=name)(x)
