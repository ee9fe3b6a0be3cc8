"""How images are prepared for a detector."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxattn.errors import InputError
from flaxattn.images.canvas import (
    Placed,
    Size,
    detector_size,
    placed,
    require_canvas,
    require_multiple,
    require_sizes,
    rounded_up,
    stated,
)
from flaxattn.images.decoding import Encoded, decode
from flaxattn.images.geometry import interpolate
from flaxattn.images.preprocessing import (
    Preprocessing,
    flat_config,
    normalise,
    require_normalisation,
)
from flaxattn.layers.fields import require_types

_STRIDE = 32  # what both sides of a detector's canvas are multiples of


class DetectorPreprocessing(NamedTuple):
    """What an image goes through before a detector. Called with an image, it does it.

        image, size, original_size = DetectorPreprocessing()("street.jpg")

    The whole image is normalised and resized as in torchvision's GeneralizedRCNNTransform: by
    min(min_size / its shorter side, max_size / its longer one). Then it is padded with zeros below
    and on the right. The defaults are those of torchvision's detectors, which are evaluated with
    an image at a time: it has the same padding here, and so the same boxes are found.

    Padding changes features near the edges a little, and each canvas is a program to compile: a
    larger `multiple`, such as 256, makes few canvases of many sizes.

    Fields:
        min_size: of the shorter side.
        max_size: of the longer side.
        mean, std: of each channel, one (grey) or three (RGB), in units of 0 to 1.
        canvas: height and width of the one canvas for all images, to which one that would not fit
            is shrunk, as in a run of train.py; None for the least that holds an image.
        multiple: both sides of that least canvas are multiples of it, and it is one of 32.
    """

    min_size: int = 800
    max_size: int = 1333
    mean: tuple[float, ...] = Preprocessing().mean
    std: tuple[float, ...] = Preprocessing().std
    canvas: Size | None = None
    multiple: int = _STRIDE

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "DetectorPreprocessing":
        """The preprocessing in a `Checkpoint.config`, as a run of train.py writes it.

        What the config leaves out is as above. Of several values of min_size, the last is taken.

        Raises InputError for values that cannot be read and for those that `checked` refuses.
        """
        default, config = cls(), flat_config(config)
        try:
            sizes = config.get("min_size") or default.min_size
            found = cls(
                int(sizes[-1] if isinstance(sizes, list | tuple) else sizes),
                int(config.get("max_size") or default.max_size),
                **stated(config, default),
            )
        except (TypeError, ValueError, OverflowError, LookupError) as error:
            raise InputError(
                f"the config's preprocessing cannot be read ({error}): min_size and max_size must "
                f"be integers, canvas two of them, mean and std a number per channel."
            ) from error
        return found.checked()

    def checked(self) -> "DetectorPreprocessing":
        """Itself. Raises InputError for numbers that do not fit."""
        require_types(self)
        require_normalisation(len(self.mean), self.mean, self.std)
        require_sizes(self.min_size, self.max_size)
        require_multiple(self.multiple, of=_STRIDE)
        if self.canvas is not None:
            require_canvas(self.canvas, of=_STRIDE)
        return self

    def canvas_of(self, height: int, width: int) -> Size:
        """Height and width of the canvas for an image of this height and width."""
        return self.canvas or rounded_up(self._size(height, width), self.multiple)

    def __call__(self, image: Encoded) -> Placed:
        """An image file, its bytes, or a Pillow image on its canvas.

        Raises InputError for an image that cannot be read and for fields that `checked` refuses.
        """
        pixels = decode(image, channels=len(self.checked().mean))
        height, width = pixels.shape[:2]
        resized = interpolate(
            normalise(pixels, mean=self.mean, std=self.std), *self._size(height, width)
        )
        return placed(resized, self.canvas_of(height, width), (height, width))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(H, W, C) of one of the network's inputs."""
        return (*self.canvas_of(self.min_size, self.min_size), len(self.mean))

    def to_config(self) -> dict[str, Any]:
        """The fields for `write` and for `of`."""
        return self._asdict()

    def _size(self, height: int, width: int) -> Size:
        return detector_size(
            height, width, min_size=self.min_size, max_size=self.max_size, canvas=self.canvas
        )
