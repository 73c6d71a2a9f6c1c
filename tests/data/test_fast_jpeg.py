"""simplejpeg decodes JPEG files to the same pixels as Pillow, and Pillow those that it refuses."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from seeded_images import smooth

from retinanet_jax.data import decoding
from retinanet_jax.data.decoding import decode_image

START_OF_FRAME = b"\xff\xc0"
FACTORS = 11  # bytes from there to the sampling factors of the first of three components


@pytest.fixture
def decode_both(monkeypatch):
    """`decode_both(data)`: the pixels by simplejpeg, None if Pillow decodes it, and by Pillow."""
    simplejpeg = pytest.importorskip("simplejpeg")

    def decode_both(data):
        with Image.open(io.BytesIO(data)) as image:
            fast = decoding._jpeg_pixels(image, data)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_simplejpeg", lambda: None)
            by_pillow = decode_image(data, "a")
        np.testing.assert_array_equal(decode_image(data, "a"), by_pillow)
        return fast, by_pillow

    decoding._simplejpeg.cache_clear()
    assert decoding._simplejpeg() is simplejpeg
    return decode_both


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2", "quality": 30},
        {"subsampling": "4:4:4", "quality": 98},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"mode": "L"},
        {"keep_rgb": True},  # without conversion to YCbCr
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 48)])
def test_the_pixels_are_pillow_s_bit_for_bit(decode_both, encode, options, size):
    fast, by_pillow = decode_both(encode(smooth(*size), "JPEG", **options))
    np.testing.assert_array_equal(fast, by_pillow, strict=True)


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_other_subsampling_has_pillow_s_pixels(decode_both, subsampling):
    simplejpeg = pytest.importorskip("simplejpeg")
    fast, by_pillow = decode_both(
        simplejpeg.encode_jpeg(smooth(37, 51), colorsubsampling=subsampling)
    )
    np.testing.assert_array_equal(fast, by_pillow, strict=True)


def test_photographs_have_pillow_s_pixels(decode_both, test_data):
    files = sorted(test_data.joinpath("coco21").rglob("*.jpg"))
    assert len(files) >= 21
    for file in files:
        fast, by_pillow = decode_both(file.read_bytes())
        np.testing.assert_array_equal(fast, by_pillow, strict=True)


def test_the_orientation_is_applied_to_them(decode_both, encode):
    data = encode(smooth(20, 30), "JPEG", orientation=6)
    fast, oriented = decode_both(data)
    np.testing.assert_array_equal(np.rot90(fast, -1), oriented)


def test_cmyk_and_damaged_or_unusual_files_are_decoded_by_pillow(decode_both, encode):
    whole = encode(smooth(48, 96), "JPEG", subsampling="4:4:4")
    start = whole.index(START_OF_FRAME) + FACTORS
    unusual = whole[:start] + b"\x31" + whole[start + 1 :]  # three times as many columns of Y
    superfluous = whole[:-2] + bytes(50) + whole[-2:]  # bytes before the end
    cmyk = encode(smooth(16, 16), "JPEG", mode="CMYK")
    for data in (unusual, superfluous, cmyk):
        fast, _ = decode_both(data)
        assert fast is None


def test_a_truncated_file_has_the_same_error(decode_both, encode):
    data = encode(smooth(64, 64), "JPEG")
    with pytest.raises(ValueError, match=r"^a: the image is corrupt or truncated \(image file is"):
        decode_image(data[:-20], "a")


def test_pillow_decodes_where_simplejpeg_is_not_installed(monkeypatch, encode):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # importing it then raises ImportError
    decoding._simplejpeg.cache_clear()
    try:
        assert decoding._simplejpeg() is None
        data = encode(smooth(16, 16), "JPEG")
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_image(data, "a"), np.asarray(image))
    finally:
        decoding._simplejpeg.cache_clear()
