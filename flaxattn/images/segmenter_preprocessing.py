"""How images are prepared for a segmenter."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxattn.errors import InputError, require_least
from flaxattn.images.canvas import (
    Placed,
    Size,
    placed,
    require_canvas,
    require_multiple,
    rounded_up,
    stated,
)
from flaxattn.images.decoding import Encoded, decode
from flaxattn.images.geometry import resize, with_shorter_side
from flaxattn.images.preprocessing import (
    Preprocessing,
    flat_config,
    normalise,
    require_normalisation,
)
from flaxattn.layers.fields import require_types

_SIDE = 65  # of an input, where images keep their own size: for layers that halve it four times


class SegmenterPreprocessing(NamedTuple):
    """What an image goes through before a segmenter. Called with an image, it does it.

        image, size, original_size = SegmenterPreprocessing()("cat.jpg")

    The whole image is resized, with antialiasing, normalised, and padded with zeros below and on
    the right. The defaults are those of torchvision's segmenters, without padding.

    Padding changes features near the edges, and those of the whole image where a head pools it; but
    each canvas is a program to compile: a `multiple` such as 64 makes few canvases of many sizes.

    Fields:
        shorter_side: to which the shorter side is resized; 0 leaves an image at its own size.
        mean, std: of each channel, one (grey) or three (RGB), in units of 0 to 1.
        canvas: height and width of the one canvas for all images, to which one that would not fit
            is shrunk, as in a run of train.py, which refuses such an image; None for the least that
            holds an image.
        multiple: both sides of that least canvas are multiples of it.
    """

    shorter_side: int = 520
    mean: tuple[float, ...] = Preprocessing().mean
    std: tuple[float, ...] = Preprocessing().std
    canvas: Size | None = None
    multiple: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "SegmenterPreprocessing":
        """The preprocessing in a `Checkpoint.config`, as a run of train.py writes it.

        What the config leaves out is as above. `shorter_side` is called eval_resize there.

        Raises InputError for values that cannot be read and for those that `checked` refuses.
        """
        default, config = cls(), flat_config(config)
        try:
            shorter_side = int(config.get("eval_resize", default.shorter_side))
            found = cls(shorter_side, **stated(config, default))
        except (TypeError, ValueError, OverflowError, LookupError) as error:
            raise InputError(
                f"the config's preprocessing cannot be read ({error}): eval_resize must be an "
                f"integer, canvas two of them, mean and std a number per channel."
            ) from error
        return found.checked()

    def checked(self) -> "SegmenterPreprocessing":
        """Itself. Raises InputError for numbers that do not fit."""
        require_types(self)
        require_normalisation(len(self.mean), self.mean, self.std)
        require_least("shorter_side", self.shorter_side, 0)
        require_multiple(self.multiple)
        if self.canvas is not None:
            require_canvas(self.canvas)
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
        resized = resize(pixels, *self._size(height, width))
        normalised = normalise(resized, mean=self.mean, std=self.std)
        return placed(normalised, self.canvas_of(height, width), (height, width))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(H, W, C) of one of the network's inputs."""
        return (*self.canvas_of(_SIDE, _SIDE), len(self.mean))

    def to_config(self) -> dict[str, Any]:
        """The fields for `write` and for `of`."""
        fields = self._asdict()
        return {"eval_resize": fields.pop("shorter_side"), **fields}

    def _size(self, height: int, width: int) -> Size:
        """The size of an image of this height and width after it is resized."""
        if self.shorter_side:
            height, width = with_shorter_side(height, width, self.shorter_side)
        if self.canvas is None or (height <= self.canvas[0] and width <= self.canvas[1]):
            return height, width
        scale = min(self.canvas[0] / height, self.canvas[1] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
