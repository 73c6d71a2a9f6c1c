"""The worst images are those with the most errors, drawn in the colors of the errors."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from retinanet_jax.analysis import worst_images
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.worst_images import COLORS, TYPES, choose_images
from retinanet_jax.data.sources.base import Category, Source
from retinanet_jax.data.sources.objects import ObjectList

HEIGHT, WIDTH = 100, 200


class Plain(Source):
    """Gray images, of which some cannot be read."""

    def __init__(self, objects, categories, unreadable=(), num_images=4):
        self.unreadable = unreadable
        super().__init__(
            "plain",
            image_ids=[-7, 0, 10**12, 5][:num_images],
            file_names=[f"{i}.jpg" for i in range(num_images)],
            sizes=np.array([[HEIGHT, WIDTH]] * num_images, np.int32),
            categories=[Category(i, name) for i, name in categories.items()],
            objects=objects,
        )

    def read(self, index):
        raise AssertionError

    def image(self, index):
        if index in self.unreadable:
            raise FileNotFoundError(f"{self.file_name(index)} is missing\nin this folder")
        return np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def objects_of(rows):
    """Return the objects of rows (image index, class, yxyx box, is crowd)."""
    objects = ObjectList()
    for number, (image, k, box, crowd) in enumerate(rows):
        area = (box[2] - box[0]) * (box[3] - box[1])
        objects.append(number, image, k, box, crowd=crowd, area=area)
    return objects.to_objects()


def detection(image_id, category_id, yxyx, score):
    y1, x1, y2, x2 = yxyx
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


DOG, CAT = [10.0, 10.0, 50.0, 50.0], [60.0, 100.0, 90.0, 150.0]
CROWD = [0.0, 160.0, 40.0, 200.0]
NOTHING = [60, 10, 90, 40]


@pytest.fixture(scope="module")
def evaluated():
    rows = [(0, 0, DOG, False), (0, 1, CAT, False), (0, 0, CROWD, True), (1, 1, CAT, False)]
    source = Plain(objects_of(rows), {3: "cat", -1: "dog"}, unreadable=(3,))
    # Categories are sorted by id: class 0 is the dog, class 1 the cat.
    return evaluate_detections(
        source,
        [
            detection(-7, -1, DOG, 0.9),  # correct
            detection(-7, -1, [11, 10, 50, 50], 0.8),  # a duplicate
            detection(-7, -1, CAT, 0.7),  # another category
            detection(-7, -1, NOTHING, 0.6),  # background
            detection(-7, -1, CROWD, 0.95),  # ignored
            detection(0, 3, CAT, 0.4),  # correct
            detection(5, 3, NOTHING, 0.99),  # background in an image that cannot be read
        ],
    )


def errors_of(entry):
    return {name: count for name, count in entry["errors"].items() if count}


def test_errors_are_those_of_detections_from_the_threshold_on(evaluated, capsys):
    first, second, third = worst_images.worst_images(evaluated, 0.65)
    assert first["image_id"] == -7
    assert (first["correct"], first["false"], first["missed"]) == (1, 2, 1)
    assert errors_of(first) == {"duplicate": 1, "class": 1, "missed": 1}
    assert first["F1"] == pytest.approx(2 / 5)
    assert first["category_errors"] == {
        "cat": ["class", "missed"],
        "dog": ["correct", "class", "duplicate"],
    }
    assert (first["width"], first["height"]) == (WIDTH, HEIGHT)
    # Of as many errors, the first image is first. Image 2 has none.
    assert [second["file_name"], third["file_name"]] == ["1.jpg", "3.jpg"]
    assert errors_of(second) == {"missed": 1}
    assert second["categories"] == ["cat"]
    assert errors_of(third) == {"background": 1}
    capsys.readouterr()


def test_without_a_threshold_all_detections_count(evaluated, capsys):
    first, second = worst_images.worst_images(evaluated, None)
    assert errors_of(first) == {"duplicate": 1, "class": 1, "missed": 1, "background": 1}
    assert second["file_name"] == "3.jpg"
    capsys.readouterr()


def test_an_unreadable_image_is_reported_in_one_line(evaluated, capsys):
    *_, entry = worst_images.worst_images(evaluated, 0.65)
    assert entry["unreadable"] == "3.jpg is missing in this folder"
    assert entry["ground_truth"] is None
    assert entry["detections"] is None
    line = (
        "1 of the 3 worst images cannot be read and have no drawings; the first: 3.jpg is missing"
    )
    assert [text for text in capsys.readouterr().out.splitlines() if line in text]


def pixels(uri):
    prefix, _, data = uri.partition(",")
    assert prefix == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)


def assert_edges(drawing, box, color):
    """The left edge of a box has a color, which JPEG changes a little."""
    y1, x1, y2, _ = (round(side * worst_images.SIDE / WIDTH) for side in box)
    edge = drawing[(y1 + y2) // 2, x1 : x1 + 2]
    assert np.abs(edge - COLORS[color]).max() < 60, (box, edge)


def test_boxes_have_the_colors_of_their_errors(evaluated, capsys):
    first, *_ = worst_images.worst_images(evaluated, 0.65)
    truth, detections = pixels(first["ground_truth"]), pixels(first["detections"])
    assert truth.shape == detections.shape == (240, 480, 3)
    assert_edges(truth, DOG, "correct")
    assert_edges(truth, CAT, "missed")
    assert_edges(truth, CROWD, "crowd region")
    assert_edges(detections, DOG, "correct")
    assert_edges(detections, CAT, "class")
    assert_edges(detections, CROWD, "ignored")
    y, x = (round(side * 2.4) for side in (75, 10))
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
    nothing = evaluate_detections(Plain(objects_of([]), {1: "cat"}, num_images=1), [])
    assert worst_images.worst_images(nothing, None) == []
