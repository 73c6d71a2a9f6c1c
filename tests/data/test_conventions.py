"""Boxes in another convention are recognized over the whole dataset, and right ones never are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.conventions import recognize_convention
from retinanet_jax.data.sources.objects import ObjectList

HEIGHT, WIDTH = 240, 320


class BoxSource(Source):
    """A dataset of boxes, all in images of one size."""

    def __init__(self, boxes, size=(HEIGHT, WIDTH)):
        listed = ObjectList()
        for annotation_id, box in enumerate(boxes):
            listed.append(annotation_id, annotation_id % 5, 0, [float(value) for value in box])
        super().__init__(
            "boxes",
            image_ids=list(range(5)),
            file_names=[f"{k}.png" for k in range(5)],
            sizes=np.tile(np.array([size], np.int32), (5, 1)),
            categories=[Category(1, "cat")],
            objects=listed.to_objects(),
        )

    def read(self, index):
        return None


def random_boxes(seed, count=60):
    """Return random yxyx boxes of 10 to 100 pixels inside the image, of whole pixels."""
    generator = np.random.default_rng(seed)
    sides = generator.integers(10, 100, (count, 2))
    low = generator.integers(0, (HEIGHT, WIDTH) - sides)
    return np.concatenate([low, low + sides], axis=1).astype(float)


def read_xywh(numbers):
    """Return the yxyx boxes that a reader of [x, y, width, height] makes of four numbers each."""
    x, y, width, height = np.asarray(numbers, float).T
    return np.stack([y, x, y + height, x + width], axis=1)


def recognized(boxes, size=(HEIGHT, WIDTH)):
    convention = recognize_convention(BoxSource(boxes, size))
    return convention and (convention.message, convention.is_certain)


@pytest.mark.parametrize("seed", range(5))
def test_other_conventions_are_named(seed):
    y1, x1, y2, x2 = random_boxes(seed).T
    columns = {
        "corners [x1, y1, x2, y2]": (x1, y1, x2, y2),
        "[y, x, ...], with exchanged axes": (y1, x1, y2 - y1, x2 - x1),
    }
    for name, numbers in columns.items():
        message, is_certain = recognized(read_xywh(np.stack(numbers, axis=1)))
        assert f"read as {name}" in message
        assert is_certain
    scale = np.array([HEIGHT, WIDTH, HEIGHT, WIDTH])
    message, is_certain = recognized(np.stack([y1, x1, y2, x2], 1) / scale)
    assert "fractions of the image" in message
    assert is_certain


def test_width_and_height_exchanged_and_centers_are_named_but_not_refused():
    wide = random_boxes(0)
    wide[:, 0] = HEIGHT - 12 - np.arange(len(wide)) % 3  # flat boxes at the bottom of the image
    wide[:, 2], wide[:, 3] = wide[:, 0] + 10, wide[:, 1] + 100
    wide = wide[wide[:, 3] <= WIDTH]
    y1, x1, y2, x2 = wide.T
    message, is_certain = recognized(read_xywh(np.stack([x1, y1, y2 - y1, x2 - x1], 1)))
    assert "width and height exchanged" in message
    assert not is_certain
    at_end = random_boxes(1)
    at_end[:, 2:] += (HEIGHT, WIDTH) - at_end[:, 2:].max(axis=0)
    at_end[::3, 3], at_end[::3, 1] = WIDTH, WIDTH - 40
    at_start = random_boxes(2)
    at_start[:, :2] = 0
    y1, x1, y2, x2 = np.concatenate([at_end, at_start]).T
    centers = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
    message, is_certain = recognized(read_xywh(centers))
    assert "centers" in message
    assert not is_certain


def test_the_first_pixel_is_recognized_at_the_edges():
    boxes = random_boxes(0)
    boxes[:4, 1], boxes[4:8, 3] = 0, WIDTH
    assert recognized(boxes) is None
    counted_from_1 = np.maximum(boxes, 1)
    assert "counted from 1" in recognized(counted_from_1)[0]
    devkit = boxes - (1, 1, 0, 0)
    assert "begin at pixel 0" in recognized(devkit)[0]


def test_percent_are_recognized_in_many_boxes():
    percent = random_boxes(0) * 100 / (HEIGHT, WIDTH, HEIGHT, WIDTH)
    percent[0, 2:] = 99
    assert "percent" in recognized(percent, size=(600, 800))[0]


@settings(max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 60),
    st.floats(0, 0.09),
    st.booleans(),
    st.floats(1, 40),
)
def test_boxes_inside_their_images_and_a_few_careless_ones_are_not_suspected(
    seed, count, careless, corner, beyond
):
    boxes = random_boxes(seed, count) + 0.25
    number = int(careless * count)
    boxes[:number, 2:] += np.array([HEIGHT, WIDTH]) + beyond - boxes[:number, 2:]
    assert recognized(boxes) is None
    if corner:  # objects that reach from the first pixel to the last
        boxes[:, :2] = 0
        assert recognized(np.minimum(boxes, (HEIGHT, WIDTH, HEIGHT, WIDTH))) is None


def test_corners_and_a_first_corner_in_a_format_of_centers_are_named():
    y1, x1, y2, x2 = random_boxes(3).T
    for name, numbers, certain in (
        ("corners [x1, y1, x2, y2]", (x1, y1, x2, y2), True),
        ("[x, y, width, height] of a corner", (x1, y1, x2 - x1, y2 - y1), False),
    ):
        x, y, width, height = numbers
        as_centers = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], 1)
        message, is_certain = recognized(as_centers)
        assert f"read as {name}" in message
        assert is_certain == certain


@pytest.mark.parametrize(("scale", "text"), [(2, "another size"), (0.5, "smaller copies")])
def test_boxes_of_a_larger_or_smaller_image_are_named(scale, text):
    message, is_certain = recognized(random_boxes(0) * scale)
    assert text in message
    assert not is_certain


def test_a_few_fractions_among_pixels_are_named_but_not_refused():
    boxes = random_boxes(0)
    boxes[:3] /= (HEIGHT, WIDTH, HEIGHT, WIDTH)
    message, is_certain = recognized(boxes)
    assert message.startswith("3 of 60 boxes lie within the first 2 pixels")
    assert not is_certain


def test_no_box_and_one_box():
    assert recognized([]) is None
    assert recognized([[10, 10, 20, 20]]) is None
    assert recognized([[10, 10, 300, 400]]) is None
