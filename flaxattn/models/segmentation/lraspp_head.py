"""The head of MobileNetV3's authors for segmentation."""

from typing import ClassVar

import jax
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Namings
from flaxattn.layers.pooling import average_pool, rescale
from flaxattn.layers.precision import at_least_float32
from flaxattn.layers.resize import resize_bilinear
from flaxattn.models.segmentation.head import Head


class LRASPPHead(Head):
    """Lite reduced atrous spatial pyramid pooling: a gated deep map beside a shallow, finer one.

        y = W_low low + W_high resize(relu(norm(W high)) * sigmoid(W_s mean_hw high))

    Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244, section 6.4; in
    torchvision's form, whose mean is over the whole map instead of windows.

    It takes two maps, `low` (N, H, W, C_low) and `high` (N, h, w, C_high), and returns scores at
    the size of `low`.
    Parameters: cbr_0 and scale_1 kernels (1, 1, C_high, features), cbr_1, low_classifier kernel
    (1, 1, C_low, num_classes), high_classifier kernel (1, 1, features, num_classes), and the last
    two's biases. Sows the gate (N, features).

    Fields, beside those of `Head`:
        features: of the deep map.
    """

    features: int = 128

    score_names: ClassVar[tuple[str, ...]] = ("low_classifier", "high_classifier")

    @property
    def namings(self) -> Namings:
        return {"torchvision": ()}

    @nn.compact
    def __call__(self, low: Array, high: Array, train: bool = False) -> Array:
        x = self.normed_conv(high, self.features, names=("cbr_0", "cbr_1"), train=train)
        wide = at_least_float32(self.dtype or high.dtype)
        scale = self.convolution(self.features, use_bias=False, dtype=wide, name="scale_1")
        gate = jax.nn.sigmoid(scale(average_pool(high)[:, None, None, :]))[:, 0, 0, :]
        self.sow("intermediates", "attention", gate)
        x = resize_bilinear(rescale(x, gate), low.shape[1:3])
        scores = self.score(low, name="low_classifier")
        return scores + self.score(x, name="high_classifier")
