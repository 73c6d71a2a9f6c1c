"""Images of more than 8 bits a channel are scaled by a range; none is saturated silently."""

import io
import zlib

import numpy as np
import pytest
from deep_files import png_16, tiff
from PIL import Image

from retinanet_jax.config_checks import check_fields
from retinanet_jax.data.decoding import Decoding, decode_image, filled_bits_of_file
from retinanet_jax.data.image_files import read_image
from retinanet_jax.data.value_range import parse_value_range, to_8_bits

# 12 bits, as 12-bit cameras store them in 16.
VALUES = np.array([[0, 1, 8, 9, 2047, 2048, 4094, 4095]], np.uint16)
UPPER_8_OF_16 = [0, 0, 0, 0, 7, 8, 15, 15]
UPPER_8_OF_12 = [0, 0, 0, 0, 127, 128, 255, 255]
SCALED = [0, 0, 0, 1, 127, 128, 255, 255]  # of 0..4095 to 0..255, rounded


def decode(data: bytes, value_range: str = "type") -> np.ndarray:
    return decode_image(data, "a", decoding=Decoding(parse_value_range(value_range)))


def saved(image: Image.Image, file_format: str = "TIFF", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def packed_12_bits(values: np.ndarray) -> bytes:
    """Return pairs of values in three bytes each, as TIFF of 12 bits stores them."""
    pairs = values.reshape(-1, 2).astype(int)
    return b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)


@pytest.mark.parametrize(
    ("value_range", "expected"),
    [
        ("type", UPPER_8_OF_16),
        ("0,4095", SCALED),
        ("image", SCALED),
        ("0,65535", [0, 0, 0, 0, 8, 8, 16, 16]),
        ("8,9", [0, 0, 0, 255, 255, 255, 255, 255]),
    ],
)
def test_16_bit_gray_is_scaled_by_the_range(value_range, expected):
    for data in (saved(Image.fromarray(VALUES), "PNG"), saved(Image.fromarray(VALUES))):
        decoded = decode(data, value_range)
        assert decoded.shape == (1, 8, 3)
        assert decoded[0].tolist() == [[level] * 3 for level in expected]


def test_the_type_is_that_of_the_file():
    """A TIFF that states 12 bits is not read as one of 16."""
    data = tiff(packed_12_bits(VALUES), (1, 8, 1), bits=12)
    assert decode(data)[0, :, 0].tolist() == UPPER_8_OF_12
    assert decode(data, "0,4095")[0, :, 0].tolist() == SCALED


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_color_and_alpha_of_16_bits_keep_all_bits(channels):
    """Pillow itself gives the upper 8 bits of color, without a word."""
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, channels), np.uint16)
    rgb = values[..., :3] if channels > 2 else values[..., :1].repeat(3, axis=-1)
    np.testing.assert_array_equal(decode(png_16(values)), rgb >> 8)
    expected = np.rint(rgb * (255 / 4095)).astype(np.uint8)
    np.testing.assert_array_equal(decode(png_16(values), "0,4095"), expected)
    # The range of an image is that of all channels, so that colors stay as they are.
    expected = to_8_bits(rgb, (float(rgb.min()), float(rgb.max())), "a")
    np.testing.assert_array_equal(decode(png_16(values), "image"), expected)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("big_endian", [False, True])
def test_tiff_of_all_types_is_read_in_both_byte_orders(big_endian, compression):
    compress = zlib.compress if compression == 8 else bytes
    order = ">" if big_endian else "<"
    options = {"big_endian": big_endian, "compression": compression}

    def file(values: np.ndarray, type_name: str, sample_format: int = 1) -> bytes:
        values = values.reshape(*values.shape, 1) if values.ndim == 2 else values
        data = compress(values.astype(f"{order}{type_name}").tobytes())
        bits = 8 * np.dtype(type_name).itemsize
        return tiff(data, values.shape, bits, sample_format=sample_format, **options)

    rgb = np.stack([VALUES, VALUES // 2, VALUES // 4], axis=-1)
    scaled = np.rint(rgb * (255 / 4095))
    np.testing.assert_array_equal(decode(file(rgb, "u2"), "0,4095"), scaled)
    signed = VALUES.astype(int) - 100
    assert decode(file(signed, "i2", 2), "-100,3995")[0, :, 0].tolist() == SCALED
    assert decode(file(VALUES * 1e5, "i4", 2), "0,4095e5")[0, :, 0].tolist() == SCALED
    assert decode(file(VALUES / 4095, "f4", 3), "0,1")[0, :, 0].tolist() == SCALED
    if not big_endian:  # Pillow reads no unsigned integers of 32 bits in the other order
        assert decode(file(VALUES * 1e6, "u4"), "0,4095e6")[0, :, 0].tolist() == SCALED


def test_where_zero_is_white_the_image_is_inverted():
    data = tiff(VALUES.tobytes(), (1, 8, 1), bits=16, photometric=0)
    assert decode(data, "0,4095")[0, :, 0].tolist() == [255 - level for level in SCALED]


def test_8_bits_are_never_scaled(encode):
    pixels = np.random.default_rng(0).integers(50, 90, (6, 8, 3), np.uint8)
    for mode in ("L", "P", "LA", "RGB", "RGBA"):
        data = encode(pixels, mode=mode)
        expected = decode(data)
        for value_range in ("image", "0,10"):
            np.testing.assert_array_equal(decode(data, value_range), expected)


def test_an_image_of_one_value_and_numbers_that_are_no_numbers_are_black():
    assert decode(saved(Image.fromarray(np.full((2, 2), 700, np.uint16))), "image").max() == 0
    values = np.array([[np.nan, -np.inf, 0, 0.5, 1, np.inf]], np.float32)
    for value_range in ("image", "0,1"):
        decoded = decode(saved(Image.fromarray(values)), value_range)[0, :, 0]
        assert decoded.tolist() == [0, 0, 0, 128, 255, 255]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert decode(saved(Image.fromarray(nothing)), "image").max() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70_000]], np.int32), "a: has values from 0 to 70000, but config.data.value"),
        (np.array([[-5, 7]], np.int32), "a: has values from -5 to 7, but config.data.value_range="),
        (np.zeros((2, 2), np.float32), "a: has floating-point pixels, of unknown brightness; set"),
    ],
)
def test_values_outside_the_type_are_an_error_that_names_the_field(values, message):
    with pytest.raises(ValueError, match=message) as error:
        decode(saved(Image.fromarray(values)))
    assert "config.data.value_range to LOW,HIGH" in str(error.value)
    # Integers of 32 bits with values of 16 are read as such.
    assert decode(saved(Image.fromarray(VALUES.astype(np.int32))))[0, :, 0].tolist() == (
        UPPER_8_OF_16
    )


def test_color_that_pillow_would_scramble_is_an_error():
    planes = tiff(bytes(2 * 3 * 8), (1, 8, 3), bits=16, planes=2)
    with pytest.raises(ValueError, match="a: has 16-bit color in separate planes, which Pillow"):
        decode(planes)
    doubles = tiff(bytes(8 * 8), (1, 8, 1), bits=64, sample_format=3)
    with pytest.raises(ValueError, match="a: Pillow cannot read pixels of this type; save"):
        decode(doubles, "0,1")


@pytest.mark.parametrize("text", ["", "12", "auto", "5,5", "9,1", "0,inf", "nan,1", "0;1", "1,2,3"])
def test_a_range_that_is_none_is_an_error(text, config):
    config.data.value_range = text
    with pytest.raises(ValueError, match=r"config\.data\.value_range=.* must be type, image, or"):
        check_fields(config)


def test_ranges_are_parsed():
    assert parse_value_range("type") == "type"
    assert parse_value_range("image") == "image"
    assert parse_value_range("-100, 4.5e3") == (-100, 4500)


def test_arrays_and_pillow_images_are_scaled_by_the_same_rule():
    rgb = np.stack([VALUES] * 3, axis=-1)
    for image in (VALUES, rgb, Image.fromarray(VALUES), VALUES.astype(">u2")):
        assert read_image(image)[0, :, 0].tolist() == UPPER_8_OF_16
        assert read_image(image, "0,4095")[0, :, 1].tolist() == SCALED
    for dtype in (np.float32, np.float64):
        assert read_image((rgb / 4095).astype(dtype), "0,1")[0, :, 2].tolist() == SCALED


@pytest.mark.parametrize(
    ("values", "value_range", "bits"),
    [
        ([0, 4095], "type", 4),  # as 0 and 15
        ([0, 4095], "0,4095", 8),
        ([0, 1023], "type", 2),
        ([0, 16383], "type", 6),
        ([0, 65535], "type", 8),
        ([29_000, 31_000], "type", 4),  # hundredths of a kelvin, as 113 and 121
        ([29_000, 31_000], "image", 8),
        ([7, 7], "image", 0),
    ],
)
def test_the_bits_that_an_image_fills_are_counted(values, value_range, bits):
    data = saved(Image.fromarray(np.array([values], np.uint16)), "PNG")
    filled = filled_bits_of_file(data, "a", parse_value_range(value_range))
    assert filled == (values[0], values[1], bits)


def test_images_of_8_bits_have_no_bits_to_fill(encode):
    data = encode(np.zeros((4, 4, 3), np.uint8))
    assert filled_bits_of_file(data, "a", "type") is None
    color = np.zeros((1, 2, 3), np.uint16)
    color[0, 1] = 1023
    assert filled_bits_of_file(png_16(color), "a", "type") == (0, 1023, 2)
