"""Decoding every kind of picture, and one definition of resizing in numpy and TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.data import transforms

# Top half red and blue, bottom half green and white: no two of its eight orientations are alike.
CORNERS = np.array([[[250, 0, 0], [0, 0, 250]], [[0, 250, 0], [250, 250, 250]]], np.uint8)  # 2 2 3


def blocks(height: int, width: int) -> np.ndarray:
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """As photographs are, so that JPEG changes it little."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def grey(value: int) -> list[list[int]]:
    return [[value] * 3]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_formats(encode, kind):
    pixels = blocks(32, 48)
    decoded = transforms.decode_image(encode(pixels, kind), "a")
    assert decoded.dtype == np.uint8
    centres = decoded[8::16, 12::24]
    assert np.abs(centres.astype(int) - CORNERS).max() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_modes_become_rgb(encode, mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = encode(np.full((16, 16, 3), 255, np.uint8), kind, mode=mode)
    assert Image.open(io.BytesIO(data)).mode == mode
    decoded = transforms.decode_image(data, "a")
    assert decoded.shape == (16, 16, 3)
    assert decoded.min() >= 254


def test_grey_is_equal_in_all_channels_and_alpha_is_dropped(encode):
    decoded = transforms.decode_image(encode(np.array([[7, 200]], np.uint8)), "a")
    assert decoded.tolist() == [[[7] * 3, [200] * 3]]
    decoded = transforms.decode_image(encode(np.array([[[9, 8, 7, 0]]], np.uint8)), "a")
    assert decoded.tolist() == [[[9, 8, 7]]]


def test_a_transparent_palette_keeps_its_colours(encode):
    picture = Image.fromarray(blocks(4, 4)).quantize(4)
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes([0, 128, 255, 255]))
    decoded = transforms.decode_image(file.getvalue(), "a")
    assert np.abs(decoded.astype(int) - blocks(4, 4)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_half(encode, kind):
    data = encode(np.array([[0, 255, 256, 32768, 65535]], np.uint16), kind)
    assert transforms.decode_image(data, "a")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_16_bit_portable_grey_map():
    data = b"P5 2 1 65535\n" + np.array([256, 65535], ">u2").tobytes()
    assert transforms.decode_image(data, "a")[0, :, 0].tolist() == [1, 255]


def test_floating_point_pixels_are_refused(encode):
    with pytest.raises(ValueError, match=r"f\.tif: has floating-point pixels"):
        transforms.decode_image(encode(np.zeros((2, 2), np.float32), "TIFF"), "f.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(encode, kind, orientation):
    """Pillow saves upright pixels turned the other way, and our decoder turns them back."""
    upright = blocks(32, 48)
    turned_away = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),  # "rotate 90 clockwise to see it" undoes a counterclockwise turn
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    data = encode(np.ascontiguousarray(turned_away), kind, orientation=orientation)
    decoded = transforms.decode_image(data, "a", size=(32, 48))
    assert np.abs(decoded[8::16, 12::24].astype(int) - CORNERS).max() <= 3


def test_a_picture_annotated_unrotated_stays_so(encode):
    data = encode(blocks(32, 48), "JPEG", orientation=6)
    assert transforms.decode_image(data, "a").shape == (48, 32, 3)
    assert transforms.decode_image(data, "a", size=(48, 32)).shape == (48, 32, 3)
    unrotated = transforms.decode_image(data, "a", size=(32, 48))
    assert np.abs(unrotated[8::16, 12::24].astype(int) - CORNERS).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_another_size_than_declared_is_refused(encode, kind):
    data = encode(blocks(32, 48), kind)
    with pytest.raises(ValueError, match=r"a\.x: .*\(32, 48\).*declared with \(32, 50\)"):
        transforms.decode_image(data, "a.x", size=(32, 50))
    if kind == "JPEG":
        with pytest.raises(ValueError, match=r"a\.x: .*\(32, 48\).*declared with \(32, 50\)"):
            transforms.is_plain_jpeg(data, "a.x", (32, 50))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's own, and right
def test_a_broken_exif_block_is_not_a_broken_picture(encode):
    data = encode(blocks(32, 48), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff nonsense")
    assert transforms.decode_image(data, "a").shape == (32, 48, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_pictures_are_named_in_one_line(encode, kind, share):
    data = encode(smooth(64, 64), kind)
    with pytest.raises(ValueError, match=r"x/a\.jpg: the picture is corrupt") as caught:
        transforms.decode_image(data[: int(share * len(data))], "x/a.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"9" * 50]
)
def test_what_is_no_picture_is_named(data):
    with pytest.raises(ValueError, match=r"a\.jpg: the picture is corrupt"):
        transforms.decode_image(data, "a.jpg")


def test_resize_by_hand():
    image = np.array([[[0] * 3, [100] * 3]], np.uint8)
    # New centres lie at old -0.25, 0.25, 0.75, 1.25; the outer two keep the edge's value.
    assert transforms.resize(image, 1, 4)[0, :, 0].tolist() == [0, 25, 75, 100]
    # Without antialias, halving 4 to 2 takes the mean of the inner and outer pair alone.
    image = np.array([[[0] * 3, [10] * 3, [20] * 3, [90] * 3]], np.uint8)
    assert transforms.resize(image, 1, 2)[0, :, 0].tolist() == [5, 55]


def test_resizing_to_its_own_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    assert np.array_equal(transforms.resize(image, 17, 23), image)


def test_flip_and_pad_and_their_boxes():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) + 1
    assert np.array_equal(transforms.flip(image)[:, 0], image[:, 2])
    padded = transforms.pad(image, 4, 5)
    assert padded.shape == (4, 5, 3)
    assert np.array_equal(padded[:2, :3], image)
    assert padded.sum() == image.sum()
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    assert transforms.flip_boxes(boxes, 10).tolist() == [[1, 6, 3, 8]]
    assert transforms.resize_boxes(boxes, np.array([2.0, 0.5])).tolist() == [[2, 1, 6, 2]]
    for result in (transforms.flip_boxes(boxes, 10), transforms.resize_boxes(boxes, np.ones(2))):
        assert result.dtype == np.float32


@pytest.mark.parametrize("size", [(48, 64), (31, 97), (7, 3), (1, 1), (100, 133), (480, 640)])
def test_tensorflow_resizes_bit_for_bit_alike(size):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    expected = transforms.resize(image, *size)
    assert np.array_equal(transforms.tf_resize(image, list(size)).numpy(), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_tensorflow_decodes_alike(encode, mode, subsampling, progressive):
    """Both bring a libjpeg-turbo of their own: one grey level is what rounding may differ by."""
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    data = encode(smooth(90, 121), "JPEG", mode=mode, progressive=progressive, **options)
    assert transforms.is_plain_jpeg(data, "a", (90, 121))
    decoded = transforms.decode_image(data, "a")
    by_tf = transforms.tf_decode_jpeg(data)
    assert np.abs(by_tf.numpy().astype(int) - decoded).max() <= 1
    resized = transforms.tf_resize(by_tf, [60, 80]).numpy().astype(int)
    assert np.abs(resized - transforms.resize(decoded, 60, 80)).max() <= 1


def test_tensorflow_flips_and_pads_alike():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(transforms.tf_flip(image).numpy(), transforms.flip(image))
    assert np.array_equal(transforms.tf_pad(image, (8, 9)).numpy(), transforms.pad(image, 8, 9))


def test_only_plain_jpegs_take_tensorflows_road(encode):
    pixels = blocks(32, 48)
    assert transforms.is_plain_jpeg(encode(pixels, "JPEG"), "a", (32, 48))
    for data in (
        encode(pixels, "PNG"),
        encode(pixels, "JPEG", mode="CMYK"),
        encode(pixels, "JPEG", orientation=3),
        b"\xff\xd8\xff\xe0 broken",
    ):
        assert not transforms.is_plain_jpeg(data, "a", (32, 48))


def test_real_photographs_decode_alike(test_data):
    for path in sorted((test_data / "coco21/images").iterdir())[:4]:
        decoded = transforms.decode_image(path.read_bytes(), path.name)
        by_tf = transforms.tf_decode_jpeg(path.read_bytes()).numpy()
        assert np.abs(by_tf.astype(int) - decoded).max() <= 1
