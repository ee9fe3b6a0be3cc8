"""Dynamic convolution: attention over kernels."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import ArrayLike

from flaxattn.attention.mechanism import AsConvolution, Mechanism, variant
from flaxattn.attention.parts.mixture import mixed_convolution
from flaxattn.errors import InputError
from flaxattn.layers.conv import Initializer, kaiming_fan_out, torch_default
from flaxattn.layers.pooling import average_pool
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.widths import reduced_features


class DynamicConv(Mechanism):
    """Dynamic convolution: each sample convolves with its own mean of K kernels.

        pi = softmax_k(W2 relu(W1 mean_hw x) / tau)                  (Eq. 4)
        y  = (sum_k pi_k W_k) * x + sum_k pi_k b_k                   (Eq. 3)

    Chen, Dai, Liu, Chen, Yuan, Liu, "Dynamic Convolution: Attention over Convolution Kernels",
    CVPR 2020, arXiv:1912.03458.

    (N, H, W, C) -> (N, H', W', features) in x's dtype, with the call shape of `nn.Conv`. The
    convolution computes in `dtype` or x's, pi and the mixing in float32 or wider.
    Parameters: kernels (K, k, k, C / groups, features), biases (K, features), fc1 kernel
    (1, 1, C, h), fc2 kernel (1, 1, h, K) and bias.
    Sows pi (N, K).

    The temperature tau keeps pi nearly even while the kernels are young: the paper lowers it from
    30 to 1 in the first ten epochs. Given as an argument of a jitted function it may change without
    a new compilation; where the call has none, as in a backbone's slot, the field holds:

        step = jax.jit(lambda v, x, tau: layer.apply(v, x, train=True, temperature=tau))
        output = step(variables, x, temperature_at(epoch))

    Fields:
        features: channels of the output.
        kernel_size, strides, dilation, groups: of the convolution.
        num_kernels: K.
        reduction: C / h; h is rounded down.
        port_width: h is one more than that, and K where C is 3, as in the PyTorch port.
        use_bias: biases b_k. fc1 has none, fc2 has one.
        temperature: tau, unless the call gives it; 1 is that of a trained layer.
        fc_init: of fc1 and fc2; `kernel_init` is of each of the K kernels.

    Deviations: no code of the authors was found, and the paper does not say which layers of the
    attention have biases: they are the port's.

    Raises InputError for an even kernel, sizes that are not integers or below one, groups that do
    not divide the channels, no kernel at all, a temperature that is not positive, and where
    `reduction` leaves no channel.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    num_kernels: int = 4
    reduction: int = 4
    port_width: bool = False
    use_bias: bool = True
    temperature: float = 1.0
    fc_init: Initializer = torch_default

    role = "convolution"
    namings = {
        "port": (
            ("weight", "kernels", "stacked"),
            ("bias", "biases"),
            ("attention.fc1", "fc1"),
            ("attention.fc2", "fc2"),
        ),
    }

    port = variant(
        """The popular PyTorch port (kaijieshi7): a wider hidden layer, other initial weights.

        Its temperature starts at 34, see `stepped_temperature_at`.
        """,
        port_width=True,
        temperature=34.0,
        fc_init=kaiming_fan_out,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),
    )

    @property
    def as_convolution(self) -> AsConvolution:
        """The same kernel K times: pi sums to one."""
        return AsConvolution(("kernels",), zeros=("biases",) if self.use_bias else ())

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, temperature: ArrayLike | None = None
    ) -> Array:
        self.require_maps(x)
        wide = at_least_float32(self.dtype or x.dtype)
        if temperature is None:
            temperature = self.temperature
        if isinstance(temperature, int | float) and temperature <= 0:
            raise InputError(
                f"temperature={temperature} is not positive: use 1, or more for more even weights."
            )
        if self.num_kernels < 1:
            raise InputError(f"num_kernels={self.num_kernels} is below one: use 1 or more.")

        fc = partial(
            self.convolution,
            precision=lax.Precision.HIGHEST,
            dtype=wide,
            kernel_init=self.fc_init,
        )
        pooled = average_pool(x)[:, None, None, :]
        fc1 = fc(self._hidden_width(x.shape[-1]), use_bias=False, name="fc1")
        logits = fc(self.num_kernels, name="fc2")(jax.nn.relu(fc1(pooled)))[:, 0, 0, :]
        weights = jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)
        self.sow("intermediates", "attention", weights)
        return mixed_convolution(self, x, weights)

    def _hidden_width(self, channels: int) -> int:
        if not self.port_width:
            return reduced_features(channels, self.reduction)
        if channels == 3:
            return self.num_kernels
        return 1 + (reduced_features(channels, self.reduction) if channels >= self.reduction else 0)


def temperature_at(epoch: ArrayLike, *, start: float = 30.0, epochs: float = 10.0) -> Array:
    """The paper's temperature after so many epochs: from `start` straight to 1 in `epochs`.

    `epoch` may be a fraction, a traced one too.

    Raises InputError for `epochs` not above zero.
    """
    _require_positive("epochs", epochs)
    passed = jnp.clip(jnp.asarray(epoch, jnp.float32) / epochs, 0.0, 1.0)
    return start + (1.0 - start) * passed


def stepped_temperature_at(epoch: ArrayLike, *, start: float = 34.0, step: float = 3.0) -> Array:
    """The port's temperature in the given epoch, counted from 0: `step` less in each, down to 1.

    Raises InputError for a `step` not above zero.
    """
    _require_positive("step", step)
    return jnp.maximum(start - step * jnp.floor(jnp.asarray(epoch, jnp.float32)), 1.0)


def _require_positive(name: str, value: ArrayLike) -> None:
    """A traced value has no sign to check."""
    if isinstance(value, int | float) and value <= 0:
        raise InputError(f"{name}={value} is not positive: use a number above zero.")
