"""Systematic displacement and scale of detections, against medians computed by hand."""

import statistics

import numpy as np
import pytest
from memory_source import MemorySource, random_case, results, truth

from retinanet_jax.analysis.evaluated import evaluate_detections
from retinanet_jax.analysis.offsets import (
    Pairs,
    are_displaced,
    best_pairs,
    have_other_size,
    offsets,
)


def rows_of(content, detections):
    source = MemorySource(content)
    return offsets(best_pairs(evaluate_detections(source, results(*detections))), source.categories)


def test_offsets_by_hand():
    """The medians of three objects; two of a cat and one of a dog."""
    content = truth(
        *((1, 1, (0, 0, 20, 40)), (1, 1, (100, 100, 50, 50)), (1, 2, (0, 100, 40, 40))),
    )
    detections = [
        (1, 1, (2, 0, 20, 40), 0.9),  # dx 2
        (1, 1, (100, 104, 50, 50), 0.8),  # dy 4
        (1, 2, (-4, 100, 60, 40), 0.7),  # dx 6, 1.5 times as wide
    ]
    assert rows_of(content, detections) == [
        {"category": None, "matches": 3, "dy": 0, "dx": 2, "height": 1, "width": 1},
        {"category": "cat", "matches": 2, "dy": 2, "dx": 1, "height": 1, "width": 1},
        {"category": "dog", "matches": 1, "dy": 0, "dx": 6, "height": 1, "width": 1.5},
    ]


def test_an_object_counts_once_with_the_best_detection_near_it():
    """Not another class, not one that is nearer to another object, not one of IoU below .1."""
    content = truth((1, 1, (0, 0, 40, 40)), (1, 1, (60, 0, 40, 40)), (1, 1, (0, 100, 40, 40)))
    detections = [
        (1, 2, (1, 0, 40, 40), 0.95),  # another class
        (1, 1, (22, 0, 40, 40), 0.9),  # overlaps the first by 18/62, the second by 2/78
        (1, 1, (0, 0, 40, 40), 0.8),  # the second best of the first
        (1, 1, (60, 3, 40, 40), 0.7),
        (1, 1, (38, 138, 40, 40), 0.6),  # 4 of 3196 pixels
    ]
    assert rows_of(content, detections)[0] == {
        **{"category": None, "matches": 2, "dy": 1.5, "dx": 11, "height": 1, "width": 1}
    }


def test_crowd_regions_and_missing_pairs_are_left_out():
    content = truth((1, 1, (0, 0, 20, 20)), crowds=[(1, 1, (100, 100, 50, 50))])
    assert rows_of(content, [(1, 1, (100, 100, 50, 50), 0.9)]) == []
    assert rows_of(truth(), []) == []


@pytest.mark.parametrize("seed", range(3))
def test_offsets_equal_a_search_through_all_pairs(seed):
    content, detections = random_case(seed)
    source = MemorySource(content)
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]

    def iou(a, b):
        (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
        width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
        overlap = max(width, 0) * max(height, 0)
        return overlap / (aw * ah + bw * bh - overlap)

    best = {}
    for detection in sorted(detections, key=lambda d: -d["score"]):
        others = [a for a in objects if a["image_id"] == detection["image_id"]]
        nearest = max(others, key=lambda a: iou(a, detection), default=None)
        same_class = nearest and nearest["category_id"] == detection["category_id"]
        if same_class and iou(nearest, detection) >= 0.1:
            best.setdefault(nearest["id"], (nearest, detection))
    expected = {}
    for annotation, detection in best.values():
        (x, y, w, h), (dx, dy, dw, dh) = annotation["bbox"], detection["bbox"]
        values = (dy + dh / 2 - y - h / 2, dx + dw / 2 - x - w / 2, dh / h, dw / w)
        for name in (None, names[annotation["category_id"]]):
            expected.setdefault(name, []).append(values)
    rows = offsets(best_pairs(evaluate_detections(source, detections)), source.categories)
    assert {row["category"]: row["matches"] for row in rows} == {
        name: len(values) for name, values in expected.items()
    }
    for row in rows:
        medians = map(statistics.median, zip(*expected[row["category"]], strict=True))
        actual = [row[name] for name in ("dy", "dx", "height", "width")]
        np.testing.assert_allclose(actual, list(medians), rtol=1e-9, atol=1e-9)


def pairs_of(shift, ratio=1.0, count=20, side=100.0):
    shift, ratio = np.resize(shift, count), np.resize(ratio, count)
    return Pairs(
        np.zeros(count, int),
        np.column_stack([shift, np.zeros(count)]),
        np.column_stack([ratio, np.ones(count)]),
        np.full((count, 2), side),
    )


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (pairs_of([2.0]), True),
        (pairs_of([-2.0]), True),
        (pairs_of([1.9]), False),  # less than a fiftieth of the side
        (pairs_of([2.0], count=19), False),  # too few
        (pairs_of([0.9], side=20), False),  # less than a pixel
        (pairs_of([3.0, 3.0, 3.0, -9.0]), True),  # three of four
        (pairs_of([3.0, 3.0, -9.0]), False),  # 14 of 20
        (pairs_of([]), False),
    ],
)
def test_only_a_notable_shift_of_most_is_systematic(pairs, expected):
    assert are_displaced(pairs).tolist() == [expected, False]


def test_only_a_notable_ratio_of_most_is_systematic():
    for ratio, expected in (([1.11], True), ([1.09], False), ([0.9], True), ([0.92], False)):
        assert have_other_size(pairs_of([0.0], ratio)).tolist() == [expected, False]
    assert have_other_size(pairs_of([0.0], [1.2, 1.2, 0.8])).tolist() == [False, False]
