"""The worst images are those with the most errors, drawn in the colors of the errors."""

import base64
import io

import numpy as np
import pytest
from memory_source import SIDE, MemorySource, results, truth
from PIL import Image

from retinanet_jax.analysis import worst_images
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.worst_images import COLORS, TYPES, choose_images

# Boxes in xywh; DOG is to the right of CAT, in another line than it.
CAT, DOG, CROWD, NOTHING = (
    [10.0, 20.0, 50.0, 40.0],
    [100.0, 70.0, 50.0, 60.0],
    [160.0, 0.0, 40.0, 40.0],
    [10.0, 150.0, 50.0, 40.0],
)


def pixels_of(index):
    """Return a gray image; the last one cannot be read."""
    if index == 3:
        raise FileNotFoundError("4.jpg is missing\nin this folder")
    return np.full((SIDE, SIDE, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def evaluated():
    content = truth((1, 1, CAT), (1, 2, DOG), (2, 2, DOG), num_images=4, crowds=[(1, 1, CROWD)])
    detections = results(
        (1, 1, CAT, 0.9),  # correct
        (1, 1, [10.0, 21.0, 50.0, 40.0], 0.8),  # a duplicate
        (1, 1, DOG, 0.7),  # another category
        (1, 1, NOTHING, 0.6),  # background
        (1, 1, CROWD, 0.95),  # ignored
        (2, 2, DOG, 0.4),  # correct
        (4, 2, NOTHING, 0.99),  # background in an image that cannot be read
    )
    return evaluate_detections(MemorySource(content, pixels_of), detections)


def errors_of(entry):
    return {name: count for name, count in entry["errors"].items() if count}


def test_errors_are_those_of_detections_from_the_threshold_on(evaluated, capsys):
    first, second, third = worst_images.worst_images(evaluated, 0.65)
    assert first["image_id"] == 1
    assert (first["correct"], first["false"], first["missed"]) == (1, 2, 1)
    assert errors_of(first) == {"duplicate": 1, "class": 1, "missed": 1}
    assert first["F1"] == pytest.approx(2 / 5)
    assert first["category_errors"] == {
        "cat": ["correct", "class", "duplicate"],
        "dog": ["class", "missed"],
    }
    assert (first["width"], first["height"]) == (SIDE, SIDE)
    # Of as many errors, the first image is first. The third one has none.
    assert [second["file_name"], third["file_name"]] == ["2.jpg", "4.jpg"]
    assert errors_of(second) == {"missed": 1}
    assert second["categories"] == ["dog"]
    assert errors_of(third) == {"background": 1}
    capsys.readouterr()


def test_without_a_threshold_all_detections_count(evaluated, capsys):
    first, second = worst_images.worst_images(evaluated, None)
    assert errors_of(first) == {"duplicate": 1, "class": 1, "missed": 1, "background": 1}
    assert second["file_name"] == "4.jpg"
    capsys.readouterr()


def test_an_unreadable_image_is_reported_in_one_line(evaluated, capsys):
    *_, entry = worst_images.worst_images(evaluated, 0.65)
    assert entry["unreadable"] == "4.jpg is missing in this folder"
    assert entry["ground_truth"] is None
    assert entry["detections"] is None
    line = (
        "1 of the 3 worst images cannot be read and have no drawings; the first: 4.jpg is missing"
    )
    assert [text for text in capsys.readouterr().out.splitlines() if line in text]


def pixels(uri):
    prefix, _, data = uri.partition(",")
    assert prefix == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)


def assert_edge(drawing, box, color):
    """The left edge of a box has a color, which JPEG changes a little."""
    x, y, _, height = (round(side * worst_images.SIDE / SIDE) for side in box)
    edge = drawing[y + height // 2, x : x + 2]
    assert np.abs(edge - COLORS[color]).max() < 60, (box, edge)


def test_boxes_have_the_colors_of_their_errors(evaluated, capsys):
    first, *_ = worst_images.worst_images(evaluated, 0.65)
    objects, detections = pixels(first["ground_truth"]), pixels(first["detections"])
    assert objects.shape == detections.shape == (480, 480, 3)
    assert_edge(objects, CAT, "correct")
    assert_edge(objects, DOG, "missed")
    assert_edge(objects, CROWD, "crowd region")
    assert_edge(detections, CAT, "duplicate")  # over the correct one
    assert_edge(detections, DOG, "class")
    assert_edge(detections, CROWD, "ignored")
    x, y = (round(side * 2.4) for side in (10, 170))
    assert np.abs(detections[y, x] - 128).max() < 30  # below the threshold: without a box
    capsys.readouterr()


def test_each_type_of_error_has_its_worst_images():
    counts = np.zeros((40, len(TYPES)), int)
    counts[:20, 0] = np.arange(30, 10, -1)  # images 0 to 19: 30, 29, ... errors of the first type
    counts[25:28, 2] = (1, 3, 2)
    counts[39, 5] = 1
    assert choose_images(counts) == [*range(14), 26, 27, 39]


def test_there_may_be_no_errors_and_no_images():
    assert choose_images(np.zeros((3, len(TYPES)), int)) == []
    assert choose_images(np.zeros((0, len(TYPES)), int)) == []
    nothing = evaluate_detections(MemorySource(truth()), [])
    assert worst_images.worst_images(nothing, None) == []
