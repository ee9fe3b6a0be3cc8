import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flaxattn.errors import InputError
from flaxattn.images.decoding import decode, decode_mask, image_size, to_pillow
from tests.images.pictures import encoded, noise


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "stored", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"], ids=lambda mode: mode
)
def test_any_kind_of_image_becomes_grey_or_rgb(stored, channels, tmp_path):
    grey = noise(5, 7, 1)[..., 0]
    if stored == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 256)
    else:
        image = Image.fromarray(grey).convert(stored)
    path = tmp_path / ("x.tiff" if stored == "CMYK" else "x.png")
    image.save(path)
    pixels = decode(path, channels=channels)
    np.testing.assert_array_equal(decode(str(path), channels=channels), pixels)
    np.testing.assert_array_equal(decode(path.read_bytes(), channels=channels), pixels)
    np.testing.assert_array_equal(decode(image, channels=channels), pixels)
    assert pixels.shape == (5, 7, channels)
    assert pixels.dtype == np.uint8
    expected = np.where(grey < 128, 0, 255) if stored == "1" else grey
    if stored not in ("1", "P"):
        np.testing.assert_allclose(pixels[..., 0], expected, atol=1)


def test_png_is_lossless():
    image = noise(9, 4, 3)
    np.testing.assert_array_equal(decode(encoded(image), channels=3), image)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_what_is_no_image_is_named(content):
    sentence = r"cats/7.png cannot be read as an image \(Pillow does not know its format\): put a"
    with pytest.raises(InputError, match=sentence):
        decode(content, channels=3, name="cats/7.png")


def test_a_path_is_the_name_of_its_image(tmp_path):
    path = tmp_path / "nothing.png"
    sentence = rf"^{path} cannot be read as an image \(No such file or directory\)"
    with pytest.raises(InputError, match=sentence):
        decode(path, channels=3)
    path.write_bytes(encoded(noise(64, 64, 3))[:100])
    with pytest.raises(InputError, match=rf"^{path} cannot be read as an image .*truncated"):
        decode(path, channels=3)
    sentence = r"^the image cannot be read as an image .*truncated"
    with Image.open(path) as opened, pytest.raises(InputError, match=sentence):
        decode(opened, channels=3)


def test_sixteen_bits_of_grey_become_eight():
    grey = np.arange(0, 2**16, 2**6, dtype=np.uint16).reshape(32, 32)
    image = Image.fromarray(grey)
    np.testing.assert_array_equal(decode(image, channels=1)[..., 0], grey >> 8)
    np.testing.assert_array_equal(decode(encoded(grey), channels=3)[..., 2], grey >> 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_to_pillow_and_back(channels):
    image = noise(5, 7, channels)
    np.testing.assert_array_equal(decode(to_pillow(image), channels=channels), image)
    np.testing.assert_array_equal(
        decode(to_pillow(image[:, ::-1]), channels=channels)[:, ::-1], image
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_truncated_image_is_named(form):
    whole = encoded(noise(64, 64, 3), form)
    with pytest.raises(InputError, match=r"cats/7.png cannot be read as an image .*truncated"):
        decode(whole[: len(whole) // 2], channels=3, name="cats/7.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_are_an_image_or_a_named_error(form, data):
    content = bytearray(encoded(noise(6, 6, 3), form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(content), channels=3, name="x.png")
    except InputError as error:
        assert "x.png" in str(error)  # noqa: PT017
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_a_mask_is_its_numbers_whatever_the_palette():
    mask = np.array([[0, 3], [255, 2]], np.uint8)
    grey = Image.fromarray(mask)
    coloured = grey.copy()
    coloured.putpalette([9, 9, 9] * 256)
    for image in (grey, coloured, encoded(mask)):
        found = decode_mask(image, num_classes=4)
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == np.uint8


def test_a_wrong_mask_is_named():
    with pytest.raises(InputError, match=r"m\.png has pixels of class 3: the classes are 0 to 2"):
        decode_mask(encoded(np.full((2, 2), 3, np.uint8)), num_classes=3, name="m.png")
    with pytest.raises(InputError, match="the mask is an image of mode RGB: use a palette or grey"):
        decode_mask(encoded(noise(2, 2, 3)), num_classes=3)
    with pytest.raises(InputError, match=r"m\.png cannot be read as an image"):
        decode_mask(b"", num_classes=3, name="m.png")


def test_the_size_is_read_from_the_head_alone():
    content = encoded(noise(64, 32, 3), "JPEG")
    assert image_size(content) == (64, 32)
    assert image_size(content[: len(content) // 2]) == (64, 32)
    with pytest.raises(InputError, match="x cannot be read as an image"):
        image_size(b"?", name="x")
