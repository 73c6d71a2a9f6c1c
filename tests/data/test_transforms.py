"""Boxes stay on their pixels, and TensorFlow computes the same pixels as numpy."""

import functools
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from seeded_images import noise

from retinanet_jax.data import tf_transforms, transforms
from retinanet_jax.data.transforms import Geometry


def uncropped(resized: tuple[int, int], *, flip: bool = False, rot90_k: int = 0) -> Geometry:
    """Return a geometry without a crop."""
    return Geometry(resized, flip, rot90_k, (0, 0), resized[::-1] if rot90_k % 2 else resized)


class Planted(NamedTuple):
    """A bright rectangle in a dark image, its box, and the transforms of both."""

    image: np.ndarray
    box: tuple[int, int, int, int]
    geometry: Geometry

    @property
    def scale(self) -> np.ndarray:
        """The resized pixels per original pixel along y and x of the rotated image."""
        scale = np.divide(self.geometry.resized, self.image.shape[:2])
        return scale[::-1] if self.geometry.rot90_k % 2 else scale


@st.composite
def geometries(draw, height: int, width: int, *, resize: bool = True) -> Geometry:
    """Sample a geometry with 0.2 to 3 times the size, and any flip, rotation and crop."""
    side = st.floats(0.2, 3.0) if resize else st.just(1.0)
    resized = round(height * draw(side)), round(width * draw(side))
    everything = uncropped(resized, flip=draw(st.booleans()), rot90_k=draw(st.integers(0, 3)))
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


methods = st.sampled_from(list(transforms.PIXEL_TYPES))


@st.composite
def images(draw) -> tuple[np.ndarray, Geometry]:
    height, width = draw(st.tuples(st.integers(5, 40), st.integers(5, 40)))
    image = noise(height, width, draw(st.integers(0, 9)))
    return image, draw(geometries(height, width, resize=draw(st.booleans())))


def frame(bright: np.ndarray) -> list[int]:
    """Return the smallest box around all True pixels."""
    rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def row(values: list[int]) -> np.ndarray:
    """Return a gray image one pixel high."""
    return np.array([[[value] * 3 for value in values]], np.uint8)


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [
        # New centers are at the old -0.25, 0.25, 0.75, 1.25; the outer two have the edge's value.
        ("bilinear", [0, 100], [0, 25, 75, 100]),
        ("bilinear", [0, 1], [0, 0, 1, 1]),
        ("bilinear_float", [0, 1], [0, 0.25, 0.75, 1]),
        ("pillow", [0, 100], [0, 25, 75, 100]),
        # Without antialias, halving 4 to 2 averages neighboring pairs only.
        ("bilinear", [0, 10, 20, 90], [5, 55]),
        ("bilinear", [0, 1, 2, 255], [0, 128]),  # half to even
        ("bilinear_float", [0, 1, 2, 255], [0.5, 128.5]),
        # With it, weights 3, 3, 1 and 1, 3, 3: 50 / 7 and 340 / 7.
        ("pillow", [0, 10, 20, 90], [7, 49]),
    ],
)
def test_resizing_has_the_values_computed_by_hand(method, before, after):
    resized = transforms.resize(row(before), 1, len(after), method=method)
    assert resized.dtype == transforms.PIXEL_TYPES[method]
    assert resized[0, :, 0].tolist() == after


@pytest.mark.parametrize("method", transforms.PIXEL_TYPES)
def test_resizing_to_its_own_size_changes_nothing(method):
    image = noise(17, 23)
    assert np.array_equal(transforms.resize(image, 17, 23, method=method), image)


@settings(deadline=None, max_examples=50)
@given(case=images())
def test_the_methods_without_antialias_differ_only_by_rounding(case):
    image, geometry = case
    exact = transforms.resize(image, *geometry.resized, method="bilinear_float")
    rounded = transforms.resize(image, *geometry.resized, method="bilinear")
    assert np.array_equal(np.rint(exact), rounded)


def test_the_pillow_method_is_pillows_own_resize():
    image = noise(48, 64)
    resized = transforms.resize(image, 31, 97, method="pillow")
    expected = Image.fromarray(image).resize((97, 31), Image.Resampling.BILINEAR)
    assert np.array_equal(resized, np.asarray(expected))


def test_flipping_and_padding_images_and_boxes():
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


def test_a_rotation_by_90_degrees_has_the_values_computed_by_hand():
    """Rotated counterclockwise, the right column becomes the top row."""
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[:, :, None].repeat(3, axis=2)
    rotated = transforms.transform_image(image, uncropped((2, 3), rot90_k=1), method="bilinear")
    assert rotated[:, :, 0].tolist() == [[3, 6], [2, 5], [1, 4]]
    # Only the 6: the second row and third column before, the first row and second column after.
    box = np.array([[1, 2, 2, 3]], np.float32)
    assert transforms.rot90_boxes(box, 1, 2, 3).tolist() == [[0, 1, 1, 2]]
    both = uncropped((2, 3), flip=True, rot90_k=1)
    mirrored = transforms.transform_image(image, both, method="bilinear")
    assert mirrored[:, :, 0].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_crop_has_the_values_computed_by_hand():
    """A 2 x 4 image is resized to 4 x 8 pixels, of which 3 x 4 are cropped."""
    geometry = Geometry(resized=(4, 8), flip=False, rot90_k=0, offset=(1, 2), size=(3, 4))
    boxes = np.array([[0, 0, 1, 2], [1, 1, 2, 3], [0, 0, 1, 1], [0, 2, 1, 2], [-1, 1, 1, 2]])
    inside, visible = transforms.transform_boxes(boxes.astype(np.float32), (2, 4), geometry)
    expected = [[0, 0, 1, 2], [1, 0, 3, 4], [0, 0, 1, 0], [0, 2, 1, 2], [0, 0, 1, 2]]
    assert inside.tolist() == expected
    assert visible.tolist() == [0.25, 1, 0, 0, 0.25]
    assert (inside.dtype, visible.dtype) == (np.float32, np.float32)


@settings(deadline=None, max_examples=300)
@given(planted())
def test_a_planted_rectangle_stays_framed_by_its_box(case):
    """The tolerance is half a pixel at every scale.

    Brightness rises linearly between the centers of a dark and a bright pixel. So it is half where
    the two pixels touch, which is the box's edge, and the first bright center is within half a
    pixel of the edge.
    """
    image = transforms.transform_image(case.image, case.geometry, method="bilinear")
    boxes = np.array([case.box], np.float32)
    (box,), (visible,) = transforms.transform_boxes(boxes, case.image.shape[:2], case.geometry)
    assert image.shape[:2] == case.geometry.size
    assert (box >= 0).all()
    assert (box <= np.tile(case.geometry.size, 2)).all()
    bright = image[:, :, 1] >= 120
    if visible == 0:
        assert not bright.any()
    # Corners are rounded: all four edges are visible only if the crop contains a row and a column
    # that are bright from edge to edge. The outer half of an original pixel is not fully bright.
    if (box[2:] - box[:2] >= 1 + case.scale).all():
        np.testing.assert_allclose(frame(bright), box, atol=0.5 + 1e-3)


@settings(deadline=None, max_examples=100)
@given(planted(resize=False))
def test_the_visible_fraction_is_that_of_the_pixels(case):
    boxes = np.array([case.box], np.float32)
    (box,), (visible,) = transforms.transform_boxes(boxes, case.image.shape[:2], case.geometry)
    image = transforms.transform_image(case.image, case.geometry, method="bilinear")
    bright = image == 220
    np.testing.assert_allclose(visible, bright.sum() / (case.image == 220).sum(), rtol=1e-6)
    assert visible == 0 or frame(bright[:, :, 0]) == box.tolist()


@settings(deadline=None, max_examples=100)
@given(case=images(), method=methods)
def test_images_are_resized_then_flipped_then_rotated_then_cropped(case, method):
    """Pixels outside the crop are not computed, and do not change those inside."""
    image, geometry = case
    (y, x), (height, width) = geometry.offset, geometry.size
    expected = transforms.resize(image, *geometry.resized, method=method)
    expected = expected[:, ::-1] if geometry.flip else expected
    expected = np.rot90(expected, geometry.rot90_k)[y : y + height, x : x + width]
    transformed = transforms.transform_image(image, geometry, method=method)
    assert transformed.dtype == transforms.PIXEL_TYPES[method]
    assert np.array_equal(transformed, expected)


@pytest.mark.parametrize(
    ("change", "times"), [({}, 1), ({"rot90_k": 1}, 4), ({"flip": True}, 2), ({"rot90_k": 2}, 2)]
)
def test_a_full_crop_four_rotations_and_two_flips_change_nothing(change, times):
    image = original = noise(7, 11)
    boxes = original_boxes = np.array([[1, 2, 5, 8], [0, 0, 7, 11]], np.float32)
    unchanged = []
    for _ in range(times):
        size = image.shape[:2]
        image = transforms.transform_image(image, uncropped(size, **change), method="bilinear")
        boxes, visible = transforms.transform_boxes(boxes, size, uncropped(size, **change))
        assert visible.tolist() == [1, 1]
        same = np.array_equal(image, original), np.array_equal(boxes, original_boxes)
        unchanged.append(same)
    assert unchanged == [(False, False)] * (times - 1) + [(True, True)]


@pytest.fixture(scope="module")
def traced_transforms():
    """Return TensorFlow's `transform_image` of each method, traced once for unknown sizes."""
    import tensorflow as tf

    pair, integer = tf.TensorSpec((2,), tf.int32), tf.TensorSpec((), tf.int32)
    image, boolean = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.bool)
    return {
        method: tf.function(
            functools.partial(tf_transforms.transform_image, method=method),
            autograph=False,
            input_signature=(image, pair, boolean, integer, pair, pair),
        )
        for method in transforms.PIXEL_TYPES
    }


@settings(deadline=None, max_examples=200)
@given(case=images(), method=methods)
def test_tensorflow_transforms_bit_for_bit_equally(traced_transforms, case, method):
    image, geometry = case
    by_tf = traced_transforms[method](image, *geometry).numpy()
    ours = transforms.transform_image(image, geometry, method=method)
    assert by_tf.dtype == ours.dtype
    assert np.array_equal(by_tf, ours)


@pytest.mark.parametrize("method", transforms.PIXEL_TYPES)
@pytest.mark.parametrize("size", [(48, 64), (31, 97), (7, 3), (1, 1), (100, 133), (480, 640)])
def test_tensorflow_resizes_bit_for_bit_equally(size, method):
    image = noise(48, 64)
    by_tf = tf_transforms.resize(image, list(size), method=method).numpy()
    assert np.array_equal(by_tf, transforms.resize(image, *size, method=method))


def test_tensorflow_flips_and_pads_equally():
    image = noise(5, 7)
    assert np.array_equal(tf_transforms.flip(image).numpy(), transforms.flip(image))
    assert np.array_equal(tf_transforms.pad(image, (8, 9)).numpy(), transforms.pad(image, 8, 9))


def test_tensorflow_writes_no_messages_about_itself():
    """Neither when it is imported nor when it first computes with uint8."""
    code = (
        "from retinanet_jax.data import tf_transforms\n"
        "tf = tf_transforms.import_tensorflow()\n"
        "image = tf.zeros((4, 4, 3), tf.uint8)\n"
        "dataset = tf.data.Dataset.from_tensors(image)\n"
        "dataset = dataset.map(lambda x: tf_transforms.pad(x, (8, 8)))\n"
        "print(next(dataset.as_numpy_iterator()).shape)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in tf_transforms.ENVIRONMENT}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(8, 8, 3)\n", "")


def test_a_users_settings_of_tensorflow_remain(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    tf_transforms.import_tensorflow()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
