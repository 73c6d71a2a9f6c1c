"""Files of any format that Pillow reads are images; large ones are read if the memory suffices."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from seeded_images import smooth

from retinanet_jax.data import image_formats
from retinanet_jax.data.decoding import decode_image, is_plain_jpeg
from retinanet_jax.data.image_formats import has_image_suffix, is_image


def test_pillows_limit_of_pixels_does_not_apply(encode, monkeypatch):
    """Images beyond it are read, and the limit of the program that calls us stays as it is."""
    monkeypatch.setattr(image_formats, "UNCHECKED_PIXELS", 100)
    for limit in (1_000, 3_000):  # beyond twice the limit Pillow raises, beyond it warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings(), pytest.MonkeyPatch.context():
            warnings.simplefilter("error")
            for file_format in ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "JPEG2000"):
                options = {"compression": "tiff_lzw"} if file_format == "TIFF" else {}
                data = encode(smooth(64, 64), file_format, **options)
                assert decode_image(data, "a").shape == (64, 64, 3)
                if file_format == "JPEG":
                    assert is_plain_jpeg(data, "a", (64, 64))
            with pytest.raises(Image.DecompressionBombError if limit == 1_000 else Warning):
                Image.open(io.BytesIO(encode(smooth(64, 64), "PNG")))
        assert limit == Image.MAX_IMAGE_PIXELS


def test_an_image_beyond_the_memory_is_too_large_and_not_corrupt(encode, monkeypatch):
    monkeypatch.setattr(image_formats, "UNCHECKED_PIXELS", 999_999)
    monkeypatch.setattr(image_formats, "BYTES_PER_PIXEL", 4_000)
    monkeypatch.setattr(image_formats, "available_memory", lambda: 3_100_000_000)
    data = encode(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8))
    message = (
        r"^a\.png: the image is too large: 1 megapixels \(1000 x 1000\) require 4\.0 GB of "
        r"memory, and 3\.1 GB are available; cut it into tiles\."
    )
    with pytest.raises(ValueError, match=message):
        decode_image(data, "a.png")
    assert decode_image(encode(smooth(64, 64)), "a.png").shape == (64, 64, 3)
    for unknown_or_enough in (None, 2**33):
        monkeypatch.setattr(image_formats, "available_memory", lambda m=unknown_or_enough: m)
        assert decode_image(data, "a.png").shape == (1000, 1000, 3)


def test_a_small_file_that_claims_many_pixels_is_not_read(encode, monkeypatch):
    monkeypatch.setattr(image_formats, "available_memory", lambda: 2**60)
    data = encode(smooth(8, 8))
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    message = r"^a\.png: the image is too large: 10,000 megapixels .* a file of \d+ bytes"
    with pytest.raises(ValueError, match=message):
        decode_image(data, "a.png")
    with pytest.raises(ValueError, match="too large"):
        decode_image(data[:100], "a.png")


def test_an_image_for_which_memory_cannot_be_allocated_is_too_large(encode, monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(ValueError, match=r"^a: the image is too large to be read; cut it into"):
        decode_image(encode(smooth(8, 8)), "a")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *[("a.jpg", True), ("b/A.JPEG", True), ("a.PNG", True), ("a.tif", True), ("a.jp2", True)],
        *[("a.webp", True), ("a.avif", True), ("a.ppm", True), ("a.tga", True)],
        # Formats that contain no photographs, or that Pillow does not read itself.
        *[("a.pdf", False), ("a.eps", False), ("a.mpg", False), ("a.h5", False), ("a.wmf", False)],
        *[("a.txt", False), ("a", False), (".jpg", False)],
    ],
)
def test_a_suffix_belongs_to_an_image_if_pillow_reads_it(name, is_one):
    assert has_image_suffix(name) == is_one


def test_the_content_shows_an_image_whatever_the_suffix(encode, tmp_path):
    def write(name: str, data: bytes):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG2000", "TIFF"):
        assert is_image(write("no_suffix", encode(smooth(8, 8), file_format)))
    assert is_image(write("a.upload", encode(smooth(8, 8), "JPEG")))
    # A camera's raw file is a TIFF with a preview.
    assert not is_image(write("a.nef", encode(smooth(8, 8), "TIFF")))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    pdf, broken_png = b"%PDF-1.4\n", b"\x89PNG\r\n\x1a\n"
    for data in (b"", b"text", b"#define A 1\n", eps, pdf, bytes(100), broken_png):
        assert not is_image(write("a.bin", data))
    assert not is_image(tmp_path / "missing")


def test_the_error_about_heif_names_the_package_to_install():
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    if has_image_suffix("a.heic"):
        pytest.skip("pillow-heif is installed")
    with pytest.raises(ValueError, match=r"^I\.HEIC: HEIF images require.* pip install pillow-"):
        decode_image(data, "I.HEIC")
