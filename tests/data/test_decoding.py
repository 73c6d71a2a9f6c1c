"""Image files of every format are decoded to RGB and oriented, and errors name the file."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from seeded_images import smooth

from retinanet_jax.data import decoding, tf_transforms, transforms

# Top half red and blue, bottom half green and white: no two of its eight orientations are alike.
CORNERS = np.array([[[250, 0, 0], [0, 0, 250]], [[0, 250, 0], [250, 250, 250]]], np.uint8)  # 2 2 3


def blocks(height: int, width: int) -> np.ndarray:
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_every_file_format_is_decoded(encode, file_format):
    pixels = blocks(32, 48)
    decoded = decoding.decode_image(encode(pixels, file_format), "a")
    assert decoded.dtype == np.uint8
    centers = decoded[8::16, 12::24]
    assert np.abs(centers.astype(int) - CORNERS).max() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_pixel_mode_becomes_rgb(encode, mode):
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    data = encode(np.full((16, 16, 3), 255, np.uint8), file_format, mode=mode)
    assert Image.open(io.BytesIO(data)).mode == mode
    decoded = decoding.decode_image(data, "a")
    assert decoded.shape == (16, 16, 3)
    assert decoded.min() >= 254


def test_gray_is_copied_to_all_channels_and_alpha_is_dropped(encode):
    decoded = decoding.decode_image(encode(np.array([[7, 200]], np.uint8)), "a")
    assert decoded.tolist() == [[[7] * 3, [200] * 3]]
    decoded = decoding.decode_image(encode(np.array([[[9, 8, 7, 0]]], np.uint8)), "a")
    assert decoded.tolist() == [[[9, 8, 7]]]


def test_a_transparent_palette_keeps_its_colors(encode):
    image = Image.fromarray(blocks(4, 4)).quantize(4)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([0, 128, 255, 255]))
    decoded = decoding.decode_image(file.getvalue(), "a")
    assert np.abs(decoded.astype(int) - blocks(4, 4)).max() <= 3


def test_16_bit_portable_gray_map_keeps_its_upper_half():
    data = b"P5 2 1 65535\n" + np.array([256, 65535], ">u2").tobytes()
    assert decoding.decode_image(data, "a")[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(encode, file_format, orientation):
    """The file stores the pixels transformed the opposite way, and decoding restores them."""
    expected = blocks(32, 48)
    stored = {
        1: expected,
        2: expected[:, ::-1],
        3: expected[::-1, ::-1],
        4: expected[::-1],
        5: expected.swapaxes(0, 1),
        6: np.rot90(expected, 1),  # "rotate 90 degrees clockwise to view" undoes this rotation
        7: expected[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(expected, -1),
    }[orientation]
    data = encode(np.ascontiguousarray(stored), file_format, orientation=orientation)
    decoded = decoding.decode_image(data, "a", size=(32, 48))
    assert np.abs(decoded[8::16, 12::24].astype(int) - CORNERS).max() <= 3


def test_an_image_that_was_annotated_unrotated_stays_unrotated(encode):
    data = encode(blocks(32, 48), "JPEG", orientation=6)
    assert decoding.decode_image(data, "a").shape == (48, 32, 3)
    assert decoding.decode_image(data, "a", size=(48, 32)).shape == (48, 32, 3)
    unrotated = decoding.decode_image(data, "a", size=(32, 48))
    assert np.abs(unrotated[8::16, 12::24].astype(int) - CORNERS).max() <= 3


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_dataset_may_be_annotated_without_its_exif_orientations(encode, file_format, orientation):
    ignored = decoding.Decoding(exif="ignored")
    data = encode(blocks(32, 48), file_format, orientation=orientation)
    for size in (None, (32, 48)):
        decoded = decoding.decode_image(data, "a", size=size, decoding=ignored)
        assert np.abs(decoded[8::16, 12::24].astype(int) - CORNERS).max() <= 3
    assert decoding.is_plain_jpeg(data, "a", (32, 48), ignored) == (file_format == "JPEG")


def test_a_size_that_fits_only_one_way_shows_how_its_image_was_annotated(encode):
    data = encode(blocks(32, 48), "JPEG", orientation=6)
    for exif in ("applied", "ignored"):
        dataset = decoding.Decoding(exif=exif)
        for size in ((32, 48), (48, 32)):
            assert decoding.decode_image(data, "a", size=size, decoding=dataset).shape[:2] == size
            assert decoding.is_plain_jpeg(data, "a", size, dataset) == (size == (32, 48))
    # The size of a square image shows nothing.
    square = encode(blocks(32, 32), "JPEG", orientation=6)
    for exif, is_plain in (("applied", False), ("ignored", True)):
        dataset = decoding.Decoding(exif=exif)
        assert decoding.is_plain_jpeg(square, "a", (32, 32), dataset) == is_plain


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_orientation_of_a_tiff_is_applied_once(orientation):
    """Pillow applies it while it loads the pixels."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = blocks(32, 48)
    Image.fromarray(stored).save(file, "TIFF", exif=exif)
    decoded = decoding.decode_image(file.getvalue(), "a")
    expected = {1: stored, 3: stored[::-1, ::-1], 6: np.rot90(stored, -1)}[orientation]
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_another_size_than_declared_is_an_error(encode, file_format):
    data = encode(blocks(32, 48), file_format)
    with pytest.raises(ValueError, match=r"a\.x: .*\(32, 48\).*annotations declare \(32, 50\)"):
        decoding.decode_image(data, "a.x", size=(32, 50))
    if file_format == "JPEG":
        with pytest.raises(ValueError, match=r"a\.x: .*\(32, 48\).*annotations declare \(32, 50\)"):
            decoding.is_plain_jpeg(data, "a.x", (32, 50))


# The warning is Pillow's own, and correct.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_an_image_with_a_broken_exif_block_is_decoded(encode):
    data = encode(blocks(32, 48), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff nonsense")
    assert decoding.decode_image(data, "a").shape == (32, 48, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_named_in_one_line(encode, file_format, fraction):
    data = encode(smooth(64, 64), file_format)
    problem = "image is corrupt" if fraction else "file is empty"
    with pytest.raises(ValueError, match=rf"x/a\.jpg: the {problem}") as caught:
        decoding.decode_image(data[: int(fraction * len(data))], "x/a.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"9" * 50])
def test_a_file_that_is_not_an_image_is_named(data):
    with pytest.raises(ValueError, match=r"a\.jpg: the image is corrupt"):
        decoding.decode_image(data, "a.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_tensorflow_decodes_jpegs_equally(encode, mode, subsampling, progressive):
    """Pillow and TensorFlow each have a libjpeg-turbo: their rounding differs by one gray level."""
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    data = encode(smooth(90, 121), "JPEG", mode=mode, progressive=progressive, **options)
    assert decoding.is_plain_jpeg(data, "a", (90, 121))
    decoded = decoding.decode_image(data, "a")
    by_tf = tf_transforms.decode_jpeg(data)
    assert np.abs(by_tf.numpy().astype(int) - decoded).max() <= 1
    resized = tf_transforms.resize(by_tf, [60, 80], method="bilinear").numpy().astype(int)
    assert np.abs(resized - transforms.resize(decoded, 60, 80, method="bilinear")).max() <= 1


def test_only_plain_jpegs_are_decoded_by_tensorflow(encode):
    pixels = blocks(32, 48)
    assert decoding.is_plain_jpeg(encode(pixels, "JPEG"), "a", (32, 48))
    for data in (
        encode(pixels, "PNG"),
        encode(pixels, "JPEG", mode="CMYK"),
        encode(pixels, "JPEG", orientation=3),
        b"\xff\xd8\xff\xe0 broken",
    ):
        assert not decoding.is_plain_jpeg(data, "a", (32, 48))


def test_tensorflow_decodes_real_photographs_equally(test_data):
    for path in sorted((test_data / "coco21/images").iterdir())[:4]:
        decoded = decoding.decode_image(path.read_bytes(), path.name)
        by_tf = tf_transforms.decode_jpeg(path.read_bytes()).numpy()
        assert np.abs(by_tf.astype(int) - decoded).max() <= 1
