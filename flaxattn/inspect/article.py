"""The networks of article 3's tables: what they have and cost, beside what the article says."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from flaxattn.errors import require_least
from flaxattn.inspect.cost import cost
from flaxattn.inspect.table import aligned
from flaxattn.layers.initialise import initialise
from flaxattn.models import create_model
from flaxattn.models.detection import create_detector

_NOTES = """\
Parameters in millions, with 1000 classes; detectors with VOC's 20 and the background. Multiply-adds
in thousands of millions, of one image. "article" is what article 3 states, for detectors the time
of one image on a machine that it does not name.

SCA is the article's DualAttention as its code has it: behind conv5_3 of VGG-16, in the last block
of ResNet-50, and light behind the last two stages of MobileNetV3. On C channels it has
C^2 / 4 + C / 8 + 2 C + 1 parameters: 66,625 at 512 and 1,052,929 at 2048. So the article's 139 M of
VGG-16 is 138.42 rounded up, its 26.1 M of ResNet-50 is half a million short, and its 0.2 G more
multiply-adds are not in the module, which takes 0.001 G at most. The block that the article gives
for ResNet-50, with a 3x3 convolution of 2048 channels, would have 38 M parameters."""


class Row(NamedTuple):
    """A network of the article.

    Fields:
        name: as the article has it.
        make: the network.
        size: height and width of its images.
        stated: the article's parameters and multiply-adds, or its milliseconds.
    """

    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    stated: str


_VGG: dict[str, Any] = {"attention": {"name": "sca", "after": "conv5_3"}}
_RESNET: dict[str, Any] = {
    "attention": {"name": "sca", "stages": (4,), "blocks": "last", "position": "out"}
}
_MOBILENET: dict[str, Any] = {"context": {"name": "sca_lite", "stages": (6, 7), "blocks": "last"}}


def _detector(name: str, **slots: Any) -> Callable[[], nn.Module]:
    return functools.partial(create_detector, name, num_classes=21, body=slots)


ROWS = (
    Row("VGG16", functools.partial(create_model, "vgg16"), (224, 224), "138 M, 15.5 G"),
    Row("VGG16+SCA", functools.partial(create_model, "vgg16", **_VGG), (224, 224), "139 M, 15.7 G"),
    Row("ResNet50", functools.partial(create_model, "resnet50"), (224, 224), "25.5 M, 4.1 G"),
    Row(
        "ResNet50+SCA",
        functools.partial(create_model, "resnet50", **_RESNET),
        (224, 224),
        "26.1 M, 4.3 G",
    ),
    Row("Faster R-CNN, ResNet50", _detector("fasterrcnn_resnet50_fpn"), (800, 1088), "45 ms"),
    Row(
        "Faster R-CNN, ResNet50+SCA",
        _detector("fasterrcnn_resnet50_fpn", **_RESNET),
        (800, 1088),
        "48 ms",
    ),
    Row(
        "Faster R-CNN, MobileNetV3",
        _detector("fasterrcnn_mobilenet_v3_large_320_fpn"),
        (320, 448),
        "28 ms",
    ),
    Row(
        "Faster R-CNN, MobileNetV3+Lite",
        _detector("fasterrcnn_mobilenet_v3_large_320_fpn", **_MOBILENET),
        (320, 448),
        "30 ms",
    ),
)


def text(*, repeats: int = 0) -> str:
    """The rows as aligned columns, and why the article's figures are others.

    repeats: how often each network is timed on this machine, after a first call that compiles it;
        0 for not at all. Columns are then the median and the range.
    """
    require_least("repeats", repeats, 0)
    lines: list[tuple[str, ...]] = [("network", "image", "parameters", "multiply-adds", "article")]
    for row in ROWS:
        model, shape = row.make(), (1, *row.size, 3)
        spent = cost(model, shape)
        line = (
            row.name,
            "x".join(map(str, row.size)),
            f"{spent.parameters / 1e6:.2f} M",
            f"{spent.macs / 1e9:.2f} G",
            row.stated,
        )
        lines.append((*line, milliseconds(model, shape, repeats)) if repeats else line)
    if repeats:
        device = jax.devices()[0]
        lines[0] = (*lines[0], f"ms here, {repeats} times ({device.device_kind})")
    return "\n".join([*aligned(lines, right=(2, 3)), "", _NOTES])


def milliseconds(model: nn.Module, shape: tuple[int, ...], repeats: int) -> str:
    """Median and range of the time of a forward pass, with new variables."""
    variables = initialise(model, jax.random.key(0), shape)
    images = jax.device_put(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    forward = jax.jit(model.apply)
    jax.block_until_ready(forward(variables, images))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(variables, images))
        times.append(1e3 * (time.perf_counter() - start))
    return f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
