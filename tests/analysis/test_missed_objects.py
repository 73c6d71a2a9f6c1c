"""Missed objects are counted by their size, and by the anchors of the detector's evaluation."""

import numpy as np
import pytest
from memory_source import MemorySource, results, truth

from retinanet_jax import input_pipeline
from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.missed import input_boxes, missed_objects
from retinanet_jax.config import default_config
from retinanet_jax.modeling import image_anchors


def evaluated(content, detections=(), config=None):
    return evaluate_detections(MemorySource(content), results(*detections), config)


def histograms_of(content, detections=(), config=None):
    both = evaluated(content, detections, config)
    return missed_objects(both, input_boxes(both))


def config_of(short_side: int, **data):
    config = default_config()
    config.data.update(
        buckets=((short_side, short_side),), eval_short_side=short_side, long_side=short_side
    )
    config.data.update(data)
    return config


def test_objects_are_counted_by_size_and_crowd_regions_are_not():
    content = truth(
        *((1, 1, (0, 0, 6, 6)), (1, 1, (50, 0, 16, 16)), (1, 2, (0, 50, 31, 31))),
        (1, 2, (50, 50, 31.9, 31.9)),
        crowds=[(1, 1, (100, 100, 20, 20))],
    )
    of_another_class = (1, 1, (0, 50, 31, 31), 0.9)
    detections = [(1, 1, (50, 0, 16, 16), 0.1), of_another_class]
    assert histograms_of(content, detections) == {
        "by_size": [
            {"label": "4 to 8 px", "lower": 4, "upper": 8, "objects": 1, "missed": 1},
            {"label": "8 to 16 px", "lower": 8, "upper": 16, "objects": 0, "missed": 0},
            {"label": "16 to 32 px", "lower": 16, "upper": 32, "objects": 3, "missed": 2},
        ],
        "by_anchor_iou": None,
    }


def test_the_size_is_that_of_the_annotated_area_whatever_the_box():
    content = truth((1, 1, (0, 0, 100, 100)), (1, 1, (0, 0, 90, 90)), (1, 2, (0, 0, 9, 9)))
    for annotation, area in zip(content["annotations"], (4, 16, 4e6), strict=True):
        annotation["area"] = area
    bins = histograms_of(content)["by_size"]
    counts = {b["label"]: b["objects"] for b in bins if b["objects"]}
    assert counts == {"0 to 4 px": 1, "4 to 8 px": 1, "1024 px or more": 1}
    assert bins[-1]["upper"] is None


def all_anchor_iou(box, bucket, config) -> float:
    """Return the highest IoU of a yxyx box with all anchors of a bucket."""
    anchors = np.concatenate(image_anchors(bucket, config)).astype(np.float64)
    sides = np.minimum(anchors[:, 2:], box[2:]) - np.maximum(anchors[:, :2], box[:2])
    overlap = np.maximum(sides, 0).prod(axis=1)
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return float((overlap / (areas - overlap)).max())


@pytest.mark.parametrize("shapes", ["buckets", "own"])
def test_the_anchors_are_those_of_the_resized_image_in_its_bucket(shapes):
    """The IoU is that with all anchors; the images have three shapes and two buckets."""
    config = default_config()
    config.data.update(
        buckets=((96, 192), (192, 96)), eval_short_side=96, long_side=190, eval_shapes=shapes
    )
    config.matching.ignore_padding = False  # so that all anchors count
    sizes = [(50, 90), (90, 50), (80, 80)]
    rng = np.random.default_rng(0)
    objects = []
    for image, (height, width) in enumerate(sizes, 1):
        for _ in range(20):
            sides = rng.uniform(3, 45, 2)
            corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
            objects.append((image, 1, [*corner.tolist(), *sides.tolist()]))
    content = truth(*objects, num_images=3)
    for entry, (height, width) in zip(content["images"], sizes, strict=True):
        entry.update(height=height, width=width)
    boxes = input_boxes(evaluated(content, config=config))
    plan = input_pipeline.eval_plan(config, np.array(sizes), batch_size=1)
    planned = [plan.batch(step) for step in range(3)]
    place = {int(p.index[0]): (p.bucket, p.resized[0] / sizes[int(p.index[0])]) for p in planned}
    for k, (image, _, (x, y, width, height)) in enumerate(objects):
        bucket, scale = place[image - 1]
        box = np.array([y, x, y + height, x + width]) * np.tile(scale, 2)
        assert boxes.ious[k] == pytest.approx(all_anchor_iou(box, bucket, config), abs=1e-5)
        np.testing.assert_allclose(boxes.sides[k], box[2:] - box[:2], rtol=1e-4)
    assert set(boxes.image_index.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(boxes.covered, boxes.ious >= 0.5)
    assert 0.1 < boxes.covered.mean() < 0.9


def test_objects_are_counted_by_the_iou_of_their_best_anchor():
    """Anchors are squares of 32 pixels around the centers of cells of 8 pixels."""
    config = config_of(192)
    config.anchors.update(scales=(1.0,), ratios=(1.0,))
    size = 192 / 200  # of an image of 200 pixels
    square, smaller = 32 / size, 32 * np.sqrt(0.55) / size
    corner = 20 / size - smaller / 2
    objects = [
        (1, 1, (4 / size, 4 / size, square, square)),  # an anchor: IoU 1
        (1, 1, (corner, corner, smaller, smaller)),  # IoU .55
        (1, 1, (18.5 / size, 18.5 / size, 3 / size, 3 / size)),  # 9 of 1024 pixels
    ]
    detections = [(1, 1, objects[0][2], 0.5)]
    bins = histograms_of(truth(*objects), detections, config)["by_anchor_iou"]
    assert (bins[0]["label"], bins[-1]["label"]) == ("0 to 0.1", "0.9 to 1")
    assert [(b["lower"], b["missed"]) for b in bins if b["objects"]] == [(0, 1), (0.5, 1), (0.9, 0)]
    assert sum(b["objects"] for b in bins) == 3


def test_without_objects_the_histograms_are_empty():
    histograms = histograms_of(truth(), config=config_of(192))
    assert histograms == {"by_size": [], "by_anchor_iou": []}
    only_crowd = truth(crowds=[(1, 1, (0, 0, 9, 9))])
    assert histograms_of(only_crowd, config=config_of(192)) == histograms


def test_an_object_without_an_area_is_missed_and_has_no_anchor():
    content = truth((1, 1, (10, 10, 0, 5)))
    histograms = histograms_of(content, config=config_of(192))
    assert [(b["label"], b["missed"]) for b in histograms["by_anchor_iou"]] == [("0 to 0.1", 1)]
