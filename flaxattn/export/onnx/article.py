"""Article 2's four modules, which it exports to look at how their structures differ."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import onnx

from flaxattn.attention import CBAM, EfficientChannel, SelectiveKernel, SqueezeExcite
from flaxattn.attention.mechanism import Mechanism
from flaxattn.export.onnx.graph import to_onnx
from flaxattn.export.onnx.runtime import largest_difference
from flaxattn.layers.initialise import initialise

SHAPE = (1, 200, 200, 128)


class Exported(NamedTuple):
    """A module of the article.

    Fields:
        file: its name there.
        graph: the module as ONNX, of (1, 128, 200, 200).
        difference: of ONNX Runtime's answer to JAX's, in shares of the largest value.
    """

    file: str
    graph: onnx.ModelProto
    difference: float


def article_modules(*, softmax: bool = False) -> Iterator[Exported]:
    """SE, CBAM, SK and ECA with weights drawn from seed 0, in the article's order.

    Its SK never applies the softmax that it makes; with `softmax` it does. The article states opset
    11, before sums take their axes as an input; here it is `OPSET`.
    """
    modules: dict[str, Mechanism] = {
        "se_net.onnx": SqueezeExcite.article_s2(),
        "cbma_net.onnx": CBAM.article_s2(),
        "sk_net.onnx": SelectiveKernel.article_s2(features=SHAPE[-1], softmax=softmax),
        "eca_net.onnx": EfficientChannel.article_s2(),
    }
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for file, module in modules.items():
        variables = initialise(module, jax.random.key(0), SHAPE)
        graph = to_onnx(module, variables, SHAPE, layout="NCHW")
        difference = largest_difference(graph, module, variables, images, layout="NCHW")
        yield Exported(file, graph, difference)
