"""Decoding every kind of picture; boxes that follow their pixels; numpy equal to TensorFlow."""

import functools
import io
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet_jax.data import transforms
from retinanet_jax.data.transforms import Geometry

# Top half red and blue, bottom half green and white: no two of its eight orientations are alike.
CORNERS = np.array([[[250, 0, 0], [0, 0, 250]], [[0, 250, 0], [250, 250, 250]]], np.uint8)  # 2 2 3


def blocks(height: int, width: int) -> np.ndarray:
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """As photographs are, so that JPEG changes it little."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def whole(resized: tuple[int, int], *, flip: bool = False, turns: int = 0) -> Geometry:
    """Without a crop."""
    return Geometry(resized, flip, turns, (0, 0), resized[::-1] if turns % 2 else resized)


class Planted(NamedTuple):
    """A bright rectangle in a dark picture, and what is to become of them."""

    image: np.ndarray
    box: tuple[int, int, int, int]
    geometry: Geometry

    @property
    def scale(self) -> np.ndarray:
        """Resized pixels per original pixel along y and x of the turned picture."""
        scale = np.divide(self.geometry.resized, self.image.shape[:2])
        return scale[::-1] if self.geometry.turns % 2 else scale


@st.composite
def geometries(draw, height: int, width: int, *, resize: bool = True) -> Geometry:
    """From a fifth to three times the size, with any flip, turn and window."""
    side = st.floats(0.2, 3.0) if resize else st.just(1.0)
    resized = round(height * draw(side)), round(width * draw(side))
    everything = whole(resized, flip=draw(st.booleans()), turns=draw(st.integers(0, 3)))
    cut = [draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))) for n in everything.size]
    offset = tuple(min(ends) for ends in cut)
    size = tuple(max(ends) - min(ends) + 1 for ends in cut)
    return draw(st.sampled_from([everything, everything._replace(offset=offset, size=size)]))


@st.composite
def planted(draw, *, resize: bool = True) -> Planted:
    height, width = draw(st.tuples(st.integers(8, 60), st.integers(8, 60)))
    y1, y2 = sorted(draw(st.sets(st.integers(0, height), min_size=2, max_size=2)))
    x1, x2 = sorted(draw(st.sets(st.integers(0, width), min_size=2, max_size=2)))
    image = np.full((height, width, 3), 20, np.uint8)
    image[y1:y2, x1:x2] = 220
    return Planted(image, (y1, x1, y2, x2), draw(geometries(height, width, resize=resize)))


kinds = st.sampled_from(list(transforms.PIXEL_TYPES))


@st.composite
def pictures(draw) -> tuple[np.ndarray, Geometry]:
    height, width = draw(st.tuples(st.integers(5, 40), st.integers(5, 40)))
    image = noise(height, width, draw(st.integers(0, 9)))
    return image, draw(geometries(height, width, resize=draw(st.booleans())))


def frame(bright: np.ndarray) -> list[int]:
    """The smallest box around what is True."""
    rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


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


def row(values: list[int]) -> np.ndarray:
    """A grey picture one pixel high."""
    return np.array([[[value] * 3 for value in values]], np.uint8)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        # New centres lie at old -0.25, 0.25, 0.75, 1.25; the outer two keep the edge's value.
        ("bilinear", [0, 100], [0, 25, 75, 100]),
        ("bilinear", [0, 1], [0, 0, 1, 1]),
        ("bilinear_float", [0, 1], [0, 0.25, 0.75, 1]),
        ("pillow", [0, 100], [0, 25, 75, 100]),
        # Without antialias, halving 4 to 2 takes the mean of the inner and outer pair alone.
        ("bilinear", [0, 10, 20, 90], [5, 55]),
        ("bilinear", [0, 1, 2, 255], [0, 128]),  # half to even
        ("bilinear_float", [0, 1, 2, 255], [0.5, 128.5]),
        # With it, weights 3, 3, 1 and 1, 3, 3: 50 / 7 and 340 / 7.
        ("pillow", [0, 10, 20, 90], [7, 49]),
    ],
)
def test_resize_by_hand(kind, before, after):
    resized = transforms.resize(row(before), 1, len(after), kind=kind)
    assert resized.dtype == transforms.PIXEL_TYPES[kind]
    assert resized[0, :, 0].tolist() == after


@pytest.mark.parametrize("kind", transforms.PIXEL_TYPES)
def test_resizing_to_its_own_size_changes_nothing(kind):
    image = noise(17, 23)
    assert np.array_equal(transforms.resize(image, 17, 23, kind=kind), image)


@settings(deadline=None, max_examples=50)
@given(case=pictures())
def test_rounding_is_all_that_parts_the_two_without_antialias(case):
    image, geometry = case
    exact = transforms.resize(image, *geometry.resized, kind="bilinear_float")
    rounded = transforms.resize(image, *geometry.resized, kind="bilinear")
    assert np.array_equal(np.rint(exact), rounded)


def test_pillows_is_pillows_own():
    image = noise(48, 64)
    resized = transforms.resize(image, 31, 97, kind="pillow")
    expected = Image.fromarray(image).resize((97, 31), Image.Resampling.BILINEAR)
    assert np.array_equal(resized, np.asarray(expected))


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


def test_a_turn_by_hand():
    """Counter-clockwise the right column becomes the top row."""
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[:, :, None].repeat(3, axis=2)
    turned = transforms.transform_image(image, whole((2, 3), turns=1), kind="bilinear")
    assert turned[:, :, 0].tolist() == [[3, 6], [2, 5], [1, 4]]
    # The 6 alone: the second row and third column before, the first row and second column after.
    box = np.array([[1, 2, 2, 3]], np.float32)
    assert transforms.rot90_boxes(box, 1, 2, 3).tolist() == [[0, 1, 1, 2]]
    both = whole((2, 3), flip=True, turns=1)
    mirrored = transforms.transform_image(image, both, kind="bilinear")
    assert mirrored[:, :, 0].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_crop_by_hand():
    """Of 4 x 8 pixels of a 2 x 4 picture twice as large, 3 x 4 are kept."""
    geometry = Geometry(resized=(4, 8), flip=False, turns=0, offset=(1, 2), size=(3, 4))
    boxes = np.array([[0, 0, 1, 2], [1, 1, 2, 3], [0, 0, 1, 1], [0, 2, 1, 2], [-1, 1, 1, 2]])
    inside, visible = transforms.transform_boxes(boxes.astype(np.float32), (2, 4), geometry)
    expected = [[0, 0, 1, 2], [1, 0, 3, 4], [0, 0, 1, 0], [0, 2, 1, 2], [0, 0, 1, 2]]
    assert inside.tolist() == expected
    assert visible.tolist() == [0.25, 1, 0, 0, 0.25]
    assert (inside.dtype, visible.dtype) == (np.float32, np.float32)


@settings(deadline=None, max_examples=300)
@given(planted())
def test_a_planted_rectangle_stays_framed_by_its_box(case):
    """To half a pixel, at every scale.

    Between the centres of a dark and a bright pixel brightness rises linearly, so it is half where
    they touch, which is the box's edge; and the first bright centre is within half a pixel of it.
    """
    image = transforms.transform_image(case.image, case.geometry, kind="bilinear")
    boxes = np.array([case.box], np.float32)
    (box,), (visible,) = transforms.transform_boxes(boxes, case.image.shape[:2], case.geometry)
    assert image.shape[:2] == case.geometry.size
    assert (box >= 0).all()
    assert (box <= np.tile(case.geometry.size, 2)).all()
    bright = image[:, :, 1] >= 120
    if visible == 0:
        assert not bright.any()
    # Corners are rounded; a row and a column that are wholly bright across must be seen for all
    # four edges to be. The outer half of an original pixel is not.
    if (box[2:] - box[:2] >= 1 + case.scale).all():
        np.testing.assert_allclose(frame(bright), box, atol=0.5 + 1e-3)


@settings(deadline=None, max_examples=100)
@given(planted(resize=False))
def test_the_visible_share_is_that_of_the_pixels(case):
    boxes = np.array([case.box], np.float32)
    (box,), (visible,) = transforms.transform_boxes(boxes, case.image.shape[:2], case.geometry)
    image = transforms.transform_image(case.image, case.geometry, kind="bilinear")
    kept = image == 220
    np.testing.assert_allclose(visible, kept.sum() / (case.image == 220).sum(), rtol=1e-6)
    assert visible == 0 or frame(kept[:, :, 0]) == box.tolist()


@settings(deadline=None, max_examples=100)
@given(case=pictures(), kind=kinds)
def test_resizing_then_flipping_then_turning_then_cropping(case, kind):
    """What the crop leaves out is not computed, and changes nothing in what it keeps."""
    image, geometry = case
    (y, x), (height, width) = geometry.offset, geometry.size
    expected = transforms.resize(image, *geometry.resized, kind=kind)
    expected = expected[:, ::-1] if geometry.flip else expected
    expected = np.rot90(expected, geometry.turns)[y : y + height, x : x + width]
    transformed = transforms.transform_image(image, geometry, kind=kind)
    assert transformed.dtype == transforms.PIXEL_TYPES[kind]
    assert np.array_equal(transformed, expected)


@pytest.mark.parametrize(
    ("change", "times"), [({}, 1), ({"turns": 1}, 4), ({"flip": True}, 2), ({"turns": 2}, 2)]
)
def test_a_whole_crop_four_turns_and_two_flips_change_nothing(change, times):
    image = original = noise(7, 11)
    boxes = original_boxes = np.array([[1, 2, 5, 8], [0, 0, 7, 11]], np.float32)
    unchanged = []
    for _ in range(times):
        size = image.shape[:2]
        image = transforms.transform_image(image, whole(size, **change), kind="bilinear")
        boxes, visible = transforms.transform_boxes(boxes, size, whole(size, **change))
        assert visible.tolist() == [1, 1]
        same = np.array_equal(image, original), np.array_equal(boxes, original_boxes)
        unchanged.append(same)
    assert unchanged == [(False, False)] * (times - 1) + [(True, True)]


@pytest.fixture(scope="module")
def tf_transforms():
    """`tf_transform_image` of each kind as the pipeline calls it: traced once, unknown sizes."""
    import tensorflow as tf

    pair, number = tf.TensorSpec((2,), tf.int32), tf.TensorSpec((), tf.int32)
    picture, switch = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.bool)
    return {
        kind: tf.function(
            functools.partial(transforms.tf_transform_image, kind=kind),
            autograph=False,
            input_signature=(picture, pair, switch, number, pair, pair),
        )
        for kind in transforms.PIXEL_TYPES
    }


@settings(deadline=None, max_examples=200)
@given(case=pictures(), kind=kinds)
def test_tensorflow_transforms_bit_for_bit_alike(tf_transforms, case, kind):
    image, geometry = case
    by_tf = tf_transforms[kind](image, *geometry).numpy()
    ours = transforms.transform_image(image, geometry, kind=kind)
    assert by_tf.dtype == ours.dtype
    assert np.array_equal(by_tf, ours)


@pytest.mark.parametrize("kind", transforms.PIXEL_TYPES)
@pytest.mark.parametrize("size", [(48, 64), (31, 97), (7, 3), (1, 1), (100, 133), (480, 640)])
def test_tensorflow_resizes_bit_for_bit_alike(size, kind):
    image = noise(48, 64)
    by_tf = transforms.tf_resize(image, list(size), kind=kind).numpy()
    assert np.array_equal(by_tf, transforms.resize(image, *size, kind=kind))


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
    resized = transforms.tf_resize(by_tf, [60, 80], kind="bilinear").numpy().astype(int)
    assert np.abs(resized - transforms.resize(decoded, 60, 80, kind="bilinear")).max() <= 1


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
