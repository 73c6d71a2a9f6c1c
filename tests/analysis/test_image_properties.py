"""AP of images by their size, number of objects and brightness."""

import json

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis import image_properties as module
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.image_properties import image_properties
from retinanet_jax.data.sources.base import subset
from retinanet_jax.data.sources.coco import CocoSource
from retinanet_jax.evaluation.coco_metrics import coco_metrics

BOX = [0, 0, 100, 100]  # xywh


def dataset(*, pixels=None, sides=None, num_images=6):
    """Return images with one object each, of which those of even ids are detected."""
    content = truth(*((n, 1, BOX) for n in range(1, num_images + 1)), num_images=num_images)
    for entry, side in zip(content["images"], sides or [], strict=False):
        entry["height"] = entry["width"] = side
    detections = results(*((n, 1, BOX, 0.9) for n in range(2, num_images + 1, 2)))
    return evaluate_detections(MemorySource(content, pixels), detections)


def gray(*values):
    """Return a function that returns images of these brightnesses, which are unreadable if None."""

    def pixels(index):
        if values[index] is None:
            raise ValueError(f"image {index} is corrupt")
        return np.full((200, 200, 3), values[index], np.uint8)

    return pixels


def test_ap_by_brightness():
    """Of the two darkest images the second is detected, of the two lightest both are not."""
    rows = image_properties(dataset(pixels=gray(250, 110, 240, 20, 10, 120)))
    ap = (51 / 101, 1, 0)
    assert [row["property"] for row in rows] == ["brightness"] * 3
    assert [row["group"] for row in rows] == ["10 to 20", "110 to 120", "240 to 250"]
    assert [row["images"] for row in rows] == [2, 2, 2]
    assert [row["AP"] for row in rows] == pytest.approx(ap)
    assert [row["delta"] for row in rows] == pytest.approx([value - 51 / 101 for value in ap])


def test_images_that_cannot_be_read_are_left_out():
    """AP of each group is compared with that of the readable images, here 1/3."""
    rows = image_properties(dataset(pixels=gray(250, None, 240, None, 10, 120)))
    assert [row["images"] for row in rows] == [2, 1, 1]
    assert [row["AP"] for row in rows] == pytest.approx([51 / 101, 0, 0])
    all_readable = 26 / 101  # one of four is detected
    assert [row["AP"] - row["delta"] for row in rows] == pytest.approx([all_readable] * 3)


def test_ap_by_size():
    rows = image_properties(dataset(sides=(100, 100, 200, 400, 400, 400), pixels=gray(*[9] * 6)))
    assert [(row["property"], row["group"], row["images"]) for row in rows] == [
        ("size", "100", 2),
        ("size", "200 to 400", 4),
    ]


def test_a_property_that_is_the_same_for_all_images_is_left_out():
    assert image_properties(dataset()) == []
    assert image_properties(dataset(num_images=1)) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_ap_of_a_group_is_that_of_its_images(seed):
    content, detections = random_case(seed, num_images=20)
    for entry in (*content["images"], *content["annotations"], *detections):
        key = "id" if "file_name" in entry else "image_id"
        entry[key] = -entry[key]  # the ids are in the opposite order of the images
    source = MemorySource(content)
    rows = image_properties(evaluate_detections(source, detections))
    assert {row["property"] for row in rows} == {"objects"}
    assert sum(row["images"] for row in rows) == 20
    counts = np.bincount(source.objects.image_index[~source.objects.crowd], minlength=20)
    for row in rows:
        bounds = list(map(int, row["group"].split(" to ")))
        images = np.flatnonzero((counts >= bounds[0]) & (counts <= bounds[-1]))
        assert len(images) == row["images"]
        part = subset(source, images.tolist())
        of_part = [entry for entry in detections if entry["image_id"] in part.image_ids]
        expected = coco_metrics(part.ground_truth(), of_part)[0]["AP"]
        assert row["AP"] == pytest.approx(expected, abs=1e-12)
    json.dumps(rows, allow_nan=False)


def test_a_group_without_objects_has_no_ap():
    """AP of no objects is undefined; hotcoco gives it a difference of 0."""
    content = truth((5, 1, BOX), (6, 1, BOX), (6, 2, BOX), num_images=6)
    rows = image_properties(evaluate_detections(MemorySource(content), []))
    assert [(row["group"], row["AP"], row["delta"]) for row in rows] == [
        ("0", None, None),
        ("1 to 2", 0, 0),
    ]


def test_the_brightness_of_at_most_a_thousand_images_is_measured(monkeypatch):
    monkeypatch.setattr(module, "MAX_READ", 3)
    values = [10 * n for n in range(7)]
    rows = image_properties(dataset(pixels=gray(*values), num_images=7))
    assert [row["group"] for row in rows] == ["0", "30", "60"]


def test_the_brightness_of_image_files(synthetic_dataset):
    source = CocoSource(synthetic_dataset / "instances.json", synthetic_dataset / "images")
    rows = image_properties(evaluate_detections(source, []))
    rows = [row for row in rows if row["property"] == "brightness"]
    assert sum(row["images"] for row in rows) == 20
    values = sorted(source.image(index).mean() for index in range(20))
    bounds = [row["group"].split(" to ") for row in rows]
    assert (bounds[0][0], bounds[-1][-1]) == (f"{values[0]:.0f}", f"{values[-1]:.0f}")
